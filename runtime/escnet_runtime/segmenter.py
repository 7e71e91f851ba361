"""The public face of the runtime: a bundle, a vocabulary, an image, a label map."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from .backends import Backend, GraphFile, create_backend
from .bundle import Bundle
from .contract import require_contract
from .embedding_cache import EmbeddingCache, default_cache_directory
from .errors import EscNetError, InputError
from .groups import whole_groups
from .images import ImageArray, load_image
from .pipeline import Observer, Pipeline
from .postprocess import UpsampleArgmax
from .preprocess import preprocess
from .result import Segmentation
from .tokenizer import Tokenizer
from .vocabulary import Vocabulary, assemble, plan_texts
from .windows import LogitCanvas, crops, plan_windows

__all__ = ["TEXT_BATCH", "ImageSource", "Segmenter", "Window"]

ImageSource = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Window = Literal["none", "sliding"]

_LOG = logging.getLogger("escnet_runtime")
#: Texts encoded at a time: bounds the text encoder's memory, and its engine is built for it.
TEXT_BATCH = 64
_UNTRAINED = "untrained weights: the masks mean nothing"


class Segmenter:
    """Segments images with the model of a bundle, for any list of categories.

    Safe to call from several threads: calls are serialised. Use it as a context manager, or call
    :meth:`close`; both free the backend.

    Args:
        bundle: the bundle's folder, every file of which is compared with its sha256, or one that is
            open already.
        backend: one of :data:`escnet_runtime.backends.BACKENDS`; "auto" logs what it chose. Or a
            backend of your own for the graphs of this model; it is closed with the Segmenter.
        chunk: categories worked on at a time; bounds the memory and changes nothing: logits and
            labels are the same to the last bit. Rounded up to whole groups of the bundle (16
            categories), which is what the attribute ``chunk`` then says. The bundle's own value
            by default.
        cache: folder of the cache of text embeddings; None for none. By default
            ``$ESCNET_CACHE`` or the user's cache folder.

    Raises:
        BundleError: the bundle cannot be used.
        BackendError: the backend is not here.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str | Backend = "auto",
        *,
        chunk: int | None = None,
        cache: str | os.PathLike[str] | Literal["default"] | None = "default",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        manifest = self.bundle.manifest
        constants = manifest.constants
        chunk = _positive("chunk", constants.chunk if chunk is None else chunk)
        self.chunk = whole_groups(chunk, constants.group)
        self._backend = self._made(backend) if isinstance(backend, str) else backend
        self.pipeline = Pipeline(
            self._backend,
            blocks=manifest.model.blocks,
            ppg=constants.ppg,
            group=constants.group,
        )
        self._preprocessing = constants.preprocessing
        self._tokenizer: Tokenizer | None = None
        self._cache = self._open_cache(cache)
        self._lock = threading.RLock()
        self._closed = False

    @property
    def backend(self) -> str:
        """What runs the graphs, for people: library, version, device."""
        return self._backend.description

    @property
    def note(self) -> str | None:
        """A warning that belongs on every picture of this model's masks, or None."""
        return None if self.bundle.manifest.model.trained else _UNTRAINED

    def vocabulary(
        self, names: Sequence[str], *, templates: Sequence[str] | None = None
    ) -> Vocabulary:
        """Encode a list of categories once; reuse it for as many images as you like.

        Args:
            names: 1 to 65,535 categories; ", " inside a name separates synonyms, which are
                averaged. Repeated categories are computed once and never change the others.
            templates: texts with one ``{}`` each, averaged; the bundle's own by default.

        Raises:
            VocabularyError: a name or template cannot be used.
        """
        if templates is None:
            templates = self.bundle.manifest.constants.templates
        plan = plan_texts(names, templates)
        with self._lock:
            self._check_open()
            known = self._cache.get_many(plan.prompts) if self._cache else {}
            missing = [text for text in plan.prompts if text not in known]
            if missing:
                encoded = self._encode(missing)
                known.update(encoded)
                if self._cache:
                    self._cache.put_many(encoded)
        embeddings = np.stack([known[text] for text in plan.prompts])
        return assemble(plan, embeddings, model=self._model_key)

    def __call__(
        self,
        image: ImageSource,
        vocabulary: Vocabulary,
        *,
        window: Window = "none",
        observer: Observer | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: a path, a PIL image, or a uint8 array [H, W, 3] (other modes are converted).
            vocabulary: from :meth:`vocabulary` of a Segmenter of the same model.
            window: "none" looks at the whole image once; "sliding" is the evaluation protocol,
                four overlapping windows and the whole image, five times the work.
            observer: sees every stage's outputs, tensors of ``pipeline.backend``, as they are made;
                categories there are rows of ``vocabulary.embeddings``. With "sliding" it sees one
                crop after another. It must not call this Segmenter's pipeline.

        Returns:
            Labels and confidence at the image's own size.

        Raises:
            ImageError: the image cannot be read.
            BackendError: a graph failed.
        """
        self._check(vocabulary, window)
        pixels = load_image(image)
        with self._lock:
            self._check_open()
            labels, confidence = self._segment(pixels, vocabulary, window, observer)
        return Segmentation(
            labels=labels,
            confidence=confidence,
            names=vocabulary.names,
            image=pixels,
            note=self.note,
        )

    def close(self) -> None:
        """Free everything. Calling it twice is fine; using the Segmenter afterwards is an error."""
        with self._lock:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _made(self, backend: str) -> Backend:
        require_contract(self.bundle.manifest)
        return create_backend(
            {
                name: GraphFile.of(self.bundle.file(stage.file), stage)
                for name, stage in self.bundle.manifest.stages.items()
            },
            backend,
        )

    def _segment(
        self,
        pixels: ImageArray,
        vocabulary: Vocabulary,
        window: Window,
        observer: Observer | None,
    ) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.uint16], npt.NDArray[np.float16]]:
        count = len(vocabulary.embeddings)
        cells = self.bundle.manifest.model.logits
        height, width = pixels.shape[:2]
        if window == "none":
            reduced = UpsampleArgmax(height, width, (cells[0], cells[1]), count)
            for where, logits in self.image_logits(pixels, vocabulary, observer):
                self._reduce(reduced, where, logits)
        else:
            plan = plan_windows(self._preprocessing.size, cells[0])
            canvas = LogitCanvas(plan, count)
            for index, crop in enumerate(crops(pixels, plan)):
                for where, logits in self.image_logits(crop, vocabulary, observer):
                    canvas.add(index, where, logits)
            side = plan.canvas_cells
            reduced = UpsampleArgmax(height, width, (side, side), count)
            for start in range(0, count, self.chunk):
                where = slice(start, min(start + self.chunk, count))
                self._reduce(reduced, where, canvas.chunk(where))
        labels, confidence = reduced.result()
        indices = vocabulary.label_of[labels]  # rows of unique categories → the names given
        if len(vocabulary.names) <= 256:
            return indices.astype(np.uint8), confidence
        return indices, confidence

    def image_logits(
        self, pixels: ImageArray, vocabulary: Vocabulary, observer: Observer | None = None
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Logits of the unique categories, chunk by chunk: float32 [n, l, l] each."""
        start = time.perf_counter()
        tensor = preprocess(pixels, self._preprocessing)
        self.pipeline.clock.add("preprocess", start)
        encoded = self.pipeline.encode_image(tensor, observer)
        yield from self.pipeline.logits(
            encoded, vocabulary.embeddings, chunk=self.chunk, observer=observer
        )

    def _reduce(
        self, reduced: UpsampleArgmax, where: slice, logits: npt.NDArray[np.float32]
    ) -> None:
        start = time.perf_counter()
        reduced.add(where.start, logits)
        self.pipeline.clock.add("upsample_argmax", start)

    def _encode(self, texts: list[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed cleaned texts. The text encoder is freed again: few runs need it twice."""
        if self._tokenizer is None:
            reference = self.bundle.manifest.tokenizer
            path = self.bundle.file(reference.file)
            self._tokenizer = Tokenizer.open(path, reference.context_length)
        # Texts of one length together, without padding: what a text's embedding is, to the last
        # bit, must not depend on the texts that happen to be encoded with it.
        by_length: dict[int, list[tuple[str, npt.NDArray[np.int32]]]] = {}
        for text in texts:
            ids = self._tokenizer.encode([text], cleaned=True)[0]
            by_length.setdefault(len(ids), []).append((text, ids))
        encoded: dict[str, npt.NDArray[np.float32]] = {}
        try:
            for entries in by_length.values():
                for start in range(0, len(entries), TEXT_BATCH):
                    batch = entries[start : start + TEXT_BATCH]
                    embeddings = self.pipeline.encode_text(np.stack([ids for _, ids in batch]))
                    encoded.update(zip((text for text, _ in batch), embeddings, strict=True))
        finally:
            self._backend.release("text_encoder")
        return encoded

    def _open_cache(
        self, cache: str | os.PathLike[str] | Literal["default"] | None
    ) -> EmbeddingCache | None:
        if cache is None:
            return None
        folder = default_cache_directory() if cache == "default" else Path(cache)
        return EmbeddingCache(folder, self._model_key)

    @property
    def _model_key(self) -> str:
        """What a text's embedding depends on besides the text."""
        manifest = self.bundle.manifest
        return f"{manifest.stages['text_encoder'].sha256}-{manifest.tokenizer.sha256}"

    def _check(self, vocabulary: object, window: str) -> None:
        if not isinstance(vocabulary, Vocabulary):
            raise InputError(
                f"vocabulary is {type(vocabulary).__name__}, expected a Vocabulary; make one with "
                "segmenter.vocabulary([...])"
            )
        if vocabulary.model != self._model_key:
            raise InputError(
                "the vocabulary was made with another model's text encoder; make it with this "
                "Segmenter: segmenter.vocabulary([...])"
            )
        if window not in ("none", "sliding"):
            raise InputError(f"window is {window!r}, expected 'none' or 'sliding'")

    def _check_open(self) -> None:
        if self._closed:
            raise EscNetError("this Segmenter is closed; make a new one")


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least 1")
    return value
