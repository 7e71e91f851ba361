"""The baseline of a model's CLIP alone: the argmax of its correlation, without any ESC block."""

import numpy as np

from escnet_runtime.confusion import Labels
from escnet_runtime.images import ImageArray
from escnet_runtime.postprocess import UpsampleArgmax
from escnet_runtime.preprocess import preprocess
from escnet_runtime.segmenter import Segmenter, Window
from escnet_runtime.shortlist import correlation
from escnet_runtime.vocabulary import Vocabulary
from escnet_runtime.windows import LogitCanvas, crops, plan_windows

__all__ = ["correlation_labels"]


def correlation_labels(
    segmenter: Segmenter, image: ImageArray, vocabulary: Vocabulary, *, window: Window = "none"
) -> Labels:
    """Labels of an image by cosine similarity alone, made in the same way as from the logits.

    The maps have the size of the encoder's grid and are enlarged bilinearly. With sliding windows
    they are first merged as logits are, on a grid of the encoder's cells.

    Args:
        segmenter: of the model whose encoder is used; nothing else may call it meanwhile.
        image: uint8 [H, W, 3].
        vocabulary: of that segmenter.
        window: as for a Segmenter.

    Returns:
        uint8 or uint16 [H, W], index into ``vocabulary.names``.

    Raises:
        InputError: the model's sizes allow no sliding windows.
    """
    preprocessing = segmenter.bundle.manifest.constants.preprocessing
    text = vocabulary.embeddings
    everything = slice(0, len(text))

    def scores(look: ImageArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        encoded = segmenter.pipeline.encode_image(preprocess(look, preprocessing))
        return correlation(segmenter.pipeline.features(encoded), text)

    if window == "none":
        joined = scores(image)
    else:
        grid = segmenter.bundle.manifest.model.grid[0]
        plan = plan_windows(preprocessing.size, grid)
        canvas = LogitCanvas(plan, len(text))
        for index, look in enumerate(crops(image, plan)):
            canvas.add(index, everything, scores(look))
        joined = canvas.chunk(everything)
    height, width = image.shape[:2]
    _, rows, columns = joined.shape
    reduced = UpsampleArgmax(height, width, (rows, columns), len(text))
    reduced.add(0, joined)
    return vocabulary.labels(reduced.result()[0])
