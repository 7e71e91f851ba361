"""Images whose tensors are on the host: looks, logits chunk by chunk, labels and confidence."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .images import ImageArray
from .manifest import Manifest
from .pipeline import EncodedImage, Observer, Pipeline
from .postprocess import UpsampleArgmax
from .preprocess import preprocess
from .shortlist import Shortlist, kept_categories
from .windows import LogitCanvas, crops, plan_windows

__all__ = ["HostImages", "Labelled", "Window"]

Window: TypeAlias = Literal["none", "sliding"]
_Floats: TypeAlias = npt.NDArray[np.float32]


class Labelled(NamedTuple):
    """An image's labels, rows of the embeddings that were kept, and its confidence, both [H, W].

    ``kept`` are the rows that a shortlist chose; None without one.
    """

    labels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    confidence: npt.NDArray[np.float16]
    kept: npt.NDArray[np.intp] | None


class HostImages:
    """Runs images through the graphs of one model. Not safe for several threads at once.

    Args:
        pipeline: runs the graphs.
        manifest: of the bundle.
    """

    def __init__(self, pipeline: Pipeline, manifest: Manifest) -> None:
        self._pipeline, self._manifest = pipeline, manifest

    def segment(
        self,
        pixels: ImageArray,
        text: _Floats,
        *,
        window: Window,
        chunk: int,
        shortlist: Shortlist | None = None,
        observer: Observer | None = None,
    ) -> Labelled:
        """Stage by stage, for embeddings float32 [N, D] of distinct categories."""
        height, width = pixels.shape[:2]
        rows, columns = self._manifest.model.logits
        kept = None
        looks = self._looks(pixels, window)
        encoded: Iterable[EncodedImage] = (self._encoded(look, observer) for look in looks)
        if shortlist is not None:
            encoded = list(encoded)
            kept = self._chosen(encoded, text, shortlist, chunk, observer)
            text = text[kept]
        count = len(text)
        if window == "none":
            (image,) = encoded
            reduced = UpsampleArgmax(height, width, (rows, columns), count)
            for where, logits in self._logits(image, text, chunk, observer):
                self._reduce(reduced, where, logits)
        else:
            plan = plan_windows(self._size, rows)
            canvas = LogitCanvas(plan, count)
            for index, image in enumerate(encoded):
                for where, logits in self._logits(image, text, chunk, observer):
                    canvas.add(index, where, logits)
            side = plan.canvas_cells
            reduced = UpsampleArgmax(height, width, (side, side), count)
            for start in range(0, count, chunk):
                where = slice(start, min(start + chunk, count))
                self._reduce(reduced, where, canvas.chunk(where))
        began = time.perf_counter()
        labels, confidence = reduced.result()
        self._pipeline.clock.add("upsample_argmax", began)
        return Labelled(labels, confidence, kept)

    def kept(
        self, pixels: ImageArray, text: _Floats, shortlist: Shortlist, *, window: Window, chunk: int
    ) -> npt.NDArray[np.intp]:
        """Rows of ``text`` that may win in an image, by all its looks."""
        encoded = [self._encoded(look, None) for look in self._looks(pixels, window)]
        return self._chosen(encoded, text, shortlist, chunk, None)

    def logits(
        self, pixels: ImageArray, text: _Floats, *, chunk: int, observer: Observer | None = None
    ) -> Generator[tuple[slice, _Floats], None, None]:
        """Logits float32 [n, l, l] of a look at the whole image, chunk by chunk."""
        yield from self._logits(self._encoded(pixels, observer), text, chunk, observer)

    @property
    def _size(self) -> int:
        return self._manifest.constants.preprocessing.size

    def _looks(self, pixels: ImageArray, window: Window) -> Iterable[ImageArray]:
        """What the model looks at: the image, or the crops of sliding windows."""
        if window == "none":
            return [pixels]
        return crops(pixels, plan_windows(self._size, self._manifest.model.logits[0]))

    def _chosen(
        self,
        encoded: Sequence[EncodedImage],
        text: _Floats,
        shortlist: Shortlist,
        chunk: int,
        observer: Observer | None,
    ) -> npt.NDArray[np.intp]:
        return kept_categories(
            self._pipeline,
            encoded,
            text,
            shortlist,
            temperature=self._manifest.constants.ppg.temperature,
            chunk=chunk,
            observer=observer,
        )

    def _encoded(self, pixels: ImageArray, observer: Observer | None) -> EncodedImage:
        start = time.perf_counter()
        tensor = preprocess(pixels, self._manifest.constants.preprocessing)
        self._pipeline.clock.add("preprocess", start)
        return self._pipeline.encode_image(tensor, observer)

    def _logits(
        self, encoded: EncodedImage, text: _Floats, chunk: int, observer: Observer | None
    ) -> Iterator[tuple[slice, _Floats]]:
        return self._pipeline.logits(encoded, text, chunk=chunk, observer=observer)

    def _reduce(self, reduced: UpsampleArgmax, where: slice, logits: _Floats) -> None:
        start = time.perf_counter()
        reduced.add(where.start, logits)
        self._pipeline.clock.add("upsample_argmax", start)
