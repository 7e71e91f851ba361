"""The public face of the runtime: a bundle, a vocabulary, an image, a label map."""

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from .backends import Backend
from .bundle import Bundle
from .closing import Closing
from .contract import require_contract
from .device.arrays import is_device_array
from .device.base import Device
from .device_images import DeviceImages, Sent
from .embedding_cache import default_cache_directory
from .errors import EscNetError, ImageError, InputError
from .frames import Nv12Frame
from .gpu.choose import choose_backend
from .gpu.memory import IN_FLIGHT, MemoryPlan
from .gpu.pipeline import DevicePipeline
from .groups import whole_groups
from .host_images import HostImages, Labelled, Window
from .images import ImageArray, load_image
from .measured_chunks import measured_chunk
from .pipeline import Observer, Pipeline
from .result import Segmentation
from .shortlist import Keep, Shortlist
from .text_embedding import TextEmbedding
from .vocabulary import Vocabulary

__all__ = ["ChunkSource", "ImageSource", "Segmenter", "Window"]


class _CudaArray(Protocol):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class _DlpackArray(Protocol):
    def __dlpack_device__(self) -> tuple[Any, int]: ...


ImageSource = (
    str
    | os.PathLike[str]
    | Image.Image
    | npt.NDArray[np.uint8]
    | npt.NDArray[np.uint16]
    | Nv12Frame
    | _CudaArray
    | _DlpackArray
)
ChunkSource = Literal["asked", "measured", "bundle", "device"]

_LOG: Final = logging.getLogger("escnet_runtime")
#: How long the end of the process waits for a call of a daemon thread.
_END_SECONDS: Final = 10.0
_UNTRAINED = "untrained weights: the masks mean nothing"


class Segmenter(Closing):
    """Segments images with the model of a bundle, for any list of categories.

    Safe to call from several threads: calls are serialised. Use it as a context manager, or call
    :meth:`close`; both free the backend. A Segmenter that is never closed is closed when nothing
    refers to it any more or when the process ends; a backend of your own is then left alone.

    One that was used before a fork cannot be used in the forked child, which has none of the
    threads of its library. The child may close or drop it, which frees nothing there, and has to
    end by ``os._exit``, as children of ``multiprocessing`` do. Make a Segmenter in each process.

    Args:
        bundle: the bundle's folder, whose files are all compared with their sha256 first; or a
            bundle that is open already.
        backend: one of :data:`escnet_runtime.backends.BACKENDS`; "auto" takes the fastest that is
            here and logs what and why. Or a backend of your own for the graphs of this model, on
            the CPU; it is closed with the Segmenter.
        device: the GPU for a backend that needs one; the caller closes it. By default the first
            visible one.
        chunk: how many categories are worked on at a time, rounded up to whole groups of the bundle
            (16 categories); the attribute ``chunk`` has the rounded number. It decides memory and
            speed. Labels do not depend on it on ONNX Runtime's CPU provider, to the last bit of
            the logits; elsewhere last bits can differ. The default on the CPU is what
            ``escnet-build`` has measured to be the fastest on this machine, else the bundle's own.
            On a GPU it is 64, or what the engines were built for, and is made smaller, with a
            warning, if memory does not suffice.
        cache: folder for text embeddings, for small graphs as ONNX Runtime or OpenVINO has
            rewritten them for this processor, and for what TensorRT-RTX has compiled for this GPU.
            By default ``$ESCNET_CACHE`` or the user's cache folder; None keeps nothing.

    Raises:
        BundleError: the bundle cannot be used.
        BackendError: the backend is not here.
        DeviceError: there is no GPU, or it cannot be used.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str | Backend = "auto",
        *,
        device: Device | None = None,
        chunk: int | None = None,
        cache: str | os.PathLike[str] | Literal["default"] | None = "default",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        manifest = self.bundle.manifest
        constants = manifest.constants
        if chunk is not None:
            _positive("chunk", chunk)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._owned = ExitStack()
        # What nobody closes is closed with it, or when the process ends: some libraries do not take
        # it well to be freed by chance.
        self._freed = weakref.finalize(self, _free, self._lock, self._owned, self._process)
        self._device: DevicePipeline | None = None
        folder = _cache_folder(cache)
        if isinstance(backend, str):
            backend = self._made(backend, device, chunk, folder)
        self._backend = backend
        self._chunk, self._chunk_source = self._sized(chunk)
        self.pipeline = Pipeline(
            self._backend,
            blocks=manifest.model.blocks,
            ppg=constants.ppg,
            group=constants.group,
        )
        self._texts = TextEmbedding(self.bundle, self.pipeline, folder)
        self._host = HostImages(self.pipeline, manifest)
        self._sender = None if self._device is None else DeviceImages(self._device, self._host)
        self._closed = False

    @property
    def chunk(self) -> int:
        """Categories worked on at a time."""
        return self._chunk if self._device is None else self._device.chunk

    @property
    def chunk_source(self) -> ChunkSource:
        """Where :attr:`chunk` is from: asked for, measured here, the bundle's, or the GPU's."""
        return self._chunk_source

    @property
    def backend(self) -> str:
        """The backend in words for people: library, version, device."""
        return self._backend.description

    @property
    def note(self) -> str | None:
        """A warning that belongs on every picture of this model's masks, or None."""
        return None if self.bundle.manifest.model.trained else _UNTRAINED

    def vocabulary(
        self, names: Iterable[str], *, templates: Iterable[str] | None = None
    ) -> Vocabulary:
        """Encode a list of categories once; reuse it for as many images as you like.

        Args:
            names: 1 to 65,535 categories; ", " inside a name separates synonyms, which are
                averaged; a comma without a space behind it belongs to the name. Repeated
                categories are computed once and never change the others.
            templates: texts with one ``{}`` each, averaged; the bundle's own by default.

        Raises:
            VocabularyError: a name or template cannot be used.
            OutOfDeviceMemory: the text encoder does not fit the GPU with a single text.
        """
        with self._lock:
            self._check_open()
            return self._texts.vocabulary(names, templates)

    def __call__(
        self,
        image: ImageSource,
        vocabulary: Vocabulary,
        *,
        window: Window = "none",
        shortlist: Keep | Shortlist | None = None,
        observer: Observer | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: a path, a PIL image, or a uint8 array [H, W, 3], RGB (other modes are converted;
                BGR, which is OpenCV's, looks the same and is not: ``frame[:, :, ::-1]``). With a
                backend on a GPU also an array there, uint8 [H, W, 3] or [H, W, 4] in C order
                (the fourth channel is not read), of
                any library that has DLPack or the CUDA array interface: nothing is uploaded then.
                Or an :class:`Nv12Frame` of a camera or a decoder, on either side; on a GPU its
                colours are converted there.
            vocabulary: from :meth:`vocabulary` of a Segmenter of the same model.
            window: "none" looks at the whole image once; "sliding" is the evaluation protocol,
                four overlapping windows and the whole image, five times the work.
            shortlist: give the model only the categories that may win a pixel, by their
                correlation: a number keeps so many distinct ones, "auto" all that come near the
                best one at some pixel. None, or a number that drops none, changes nothing. With
                "sliding" one choice is made for all windows. See docs/shortlist.md.
            observer: called with every stage's outputs as they are made, tensors of
                ``pipeline.backend``; categories are rows of ``vocabulary.embeddings``. With
                "sliding" it sees one crop after another. With a shortlist, after ``image_encoder``
                of all crops, it also sees a stage "shortlist" with the output "kept", the rows that
                are kept; from then on categories are indices into these. It must not call this
                Segmenter's pipeline.

        Returns:
            Labels and confidence at the image's own size.

        Raises:
            ImageError: the image cannot be read.
            BackendError: a graph failed.
            OutOfDeviceMemory: it does not fit the GPU; says what would. With an observer the chunk
                is not made smaller by itself, since what the observer has seen cannot be undone.
        """
        self._check(vocabulary)
        _check_window(window)
        chosen = self._chosen(shortlist, vocabulary)
        loaded = self._loaded(image)
        with self._lock:
            self._check_open()
            if self._sender is not None and observer is None:
                text = vocabulary.embeddings
                sent = self._sender.send(loaded, text, window=window, shortlist=chosen)
                return self._result(*self._sender.receive(sent), vocabulary)
            pixels = self._on_host(loaded)
            labelled = self._host.segment(
                pixels,
                vocabulary.embeddings,
                window=window,
                chunk=self.chunk,
                shortlist=chosen,
                observer=observer,
            )
        return self._result(pixels, labelled, vocabulary)

    def stream(
        self,
        images: Iterable[ImageSource],
        vocabulary: Vocabulary | Callable[[], Vocabulary],
        *,
        window: Window = "none",
        shortlist: Keep | Shortlist | None = None,
    ) -> Generator[Segmentation, None, None]:
        """Segment images as they come, such as the frames of a video; results in their order.

        On a GPU two images are on their way at once: while one computes, the next is uploaded and
        the one before downloaded. An image is asked for only when one of the two is done, so a slow
        consumer slows the source and nothing piles up; a result comes at most one image late. On
        the CPU it is one image after the other. Other calls of this Segmenter may come between.

        Closing the iterator early waits for what is on its way and leaves the Segmenter usable;
        so does an image that cannot be read, whose error comes after the results before it.

        Args:
            images: as for :meth:`__call__`.
            vocabulary: as for :meth:`__call__`; or a function that is called for each image, once
                the image is there, so that words can change while a camera runs. ``names`` of a
                result are those that its image was asked for.
            window: as for :meth:`__call__`.
            shortlist: as for :meth:`__call__`; each image has its own.

        Raises:
            ImageError: an image cannot be read.
            BackendError: a graph failed.
        """
        _check_window(window)
        if not callable(vocabulary):
            self._check(vocabulary)
        if not (shortlist is None or isinstance(shortlist, Shortlist)):
            shortlist = Shortlist(shortlist)
        return self._streamed(images, vocabulary, window, shortlist)

    def image_logits(
        self, pixels: ImageArray, vocabulary: Vocabulary, observer: Observer | None = None
    ) -> Generator[tuple[slice, npt.NDArray[np.float32]], None, None]:
        """Logits of the unique categories, chunk by chunk: float32 [n, l, l] each.

        Other calls of this Segmenter may come between two chunks, from any thread.

        Args:
            pixels: uint8 [H, W, 3].
            vocabulary: from :meth:`vocabulary` of a Segmenter of the same model.
            observer: as for :meth:`__call__`.

        Raises:
            InputError: the vocabulary is of another model.
            EscNetError: this Segmenter is closed, or was closed in between.
            BackendError: a graph failed.
        """
        self._check(vocabulary)
        return self._logits_of(pixels, vocabulary.embeddings, observer)

    def _logits_of(
        self, pixels: ImageArray, text: npt.NDArray[np.float32], observer: Observer | None
    ) -> Generator[tuple[slice, npt.NDArray[np.float32]], None, None]:
        chunks = self._host.logits(pixels, text, chunk=self.chunk, observer=observer)
        try:
            while True:
                with self._lock:  # not over the yield: who asks for the next may take its time
                    self._check_open()
                    found = next(chunks, None)
                if found is None:
                    return
                yield found
        finally:
            with self._lock:
                chunks.close()

    def plan(
        self, categories: int, size: tuple[int, int], *, window: Window = "none"
    ) -> MemoryPlan:
        """What images of ``size`` = (height, width) need on the GPU; ``print(plan.table())``.

        The memory is taken now, so that the first image does not have to. With sliding windows it
        includes the canvas that joins the logits of all crops, which grows with the categories.

        Raises:
            InputError: this Segmenter runs on the CPU, or a number is out of range.
            OutOfDeviceMemory: it does not fit; says what would.
        """
        _check_window(window)
        _positive("categories", categories)
        try:
            height, width = size
        except (TypeError, ValueError):
            raise InputError(f"size is {size!r}, expected (height, width) in pixels") from None
        _positive("height", height)
        _positive("width", width)
        with self._lock:
            self._check_open()
            if self._device is None:
                raise InputError(
                    f"memory is planned on a GPU, this Segmenter has {self.backend}; choose "
                    "another backend"
                )
            return self._device.plan(categories, size, sliding=window == "sliding")

    @property
    def device_pipeline(self) -> DevicePipeline | None:
        """The pipeline of a GPU; None on the CPU. Its calls are not serialised."""
        return self._device

    def close(self) -> None:
        """Free everything. Calling it twice is fine; using the Segmenter afterwards is an error.

        In a process that was forked meanwhile it frees nothing.
        """
        if os.getpid() != self._process:  # where another thread may have had the lock for ever
            self._closed = True
            return
        with self._lock:
            self._closed = True
            self._backend.close()
            self._freed()

    def _made(
        self, name: str, device: Device | None, chunk: int | None, cache: Path | None
    ) -> Backend:
        require_contract(self.bundle.manifest)
        chosen = choose_backend(self.bundle, name, device=device, chunk=chunk, cache=cache)
        self._owned.callback(chosen.close)
        self._device = chosen.device
        return chosen.backend

    def _sized(self, chunk: int | None) -> tuple[int, ChunkSource]:
        """Categories at a time in whole groups, and where that is from."""
        constants = self.bundle.manifest.constants
        source: ChunkSource = "asked"
        if chunk is None and self._device is None:
            chunk, source = measured_chunk(self.bundle, self._backend.name), "measured"
        if chunk is None:
            chunk, source = constants.chunk, "bundle" if self._device is None else "device"
        return whole_groups(chunk, constants.group), source

    def _streamed(
        self,
        images: Iterable[ImageSource],
        words: Vocabulary | Callable[[], Vocabulary],
        window: Window,
        shortlist: Shortlist | None,
    ) -> Generator[Segmentation, None, None]:
        sender = self._sender
        asked = self._asked(images, words)
        waiting: deque[tuple[Sent, Vocabulary]] = deque()
        failure: Exception | None = None
        try:
            while True:
                if sender is not None and len(waiting) == IN_FLIGHT:
                    yield self._next(sender, waiting)
                try:
                    loaded, vocabulary = next(asked)
                except StopIteration:
                    break
                except Exception as error:  # of the source's own kind
                    failure = error
                    break
                if sender is None:
                    pixels = self._on_host(loaded)
                    yield self(pixels, vocabulary, window=window, shortlist=shortlist)
                    continue
                try:
                    with self._lock:
                        self._check_open()
                        chosen = self._chosen(shortlist, vocabulary)
                        text = vocabulary.embeddings
                        sent = sender.send(loaded, text, window=window, shortlist=chosen)
                        waiting.append((sent, vocabulary))
                except InputError as error:  # an array on the device is looked at only there
                    failure = error
                    break
            while sender is not None and waiting:
                yield self._next(sender, waiting)
        finally:
            with self._lock:
                for sent, _ in waiting:
                    if sender is not None:
                        sender.drop(sent)
        if failure is not None:
            raise failure

    def _asked(
        self, images: Iterable[ImageSource], words: Vocabulary | Callable[[], Vocabulary]
    ) -> Generator[tuple[object, Vocabulary], None, None]:
        """Each image as it is loaded, and the words that are wanted then."""
        for image in images:
            loaded = self._loaded(image)
            vocabulary = words() if callable(words) else words
            self._check(vocabulary)
            yield loaded, vocabulary

    def _next(self, sender: DeviceImages, waiting: deque[tuple[Sent, Vocabulary]]) -> Segmentation:
        with self._lock:
            sent, vocabulary = waiting.popleft()
            return self._result(*sender.receive(sent), vocabulary)

    def _loaded(self, image: ImageSource) -> object:
        """Pixels on the host, or what the device takes: an array there, or NV12, as it is."""
        if isinstance(image, Nv12Frame) and not image.on_device:
            return image if self._device is not None else image.rgb()
        if not isinstance(image, Nv12Frame) and not is_device_array(image):
            return load_image(image)
        if self._device is None:
            what = "a frame" if isinstance(image, Nv12Frame) else "an array"
            raise ImageError(
                f"got {what} on a GPU, and this Segmenter has {self.backend}; copy it to the "
                "host, or choose a backend on a GPU"
            )
        return image

    def _on_host(self, loaded: object) -> ImageArray:
        if self._sender is not None:
            return self._sender.on_host(loaded)
        assert isinstance(loaded, np.ndarray)
        return loaded

    def _result(
        self, pixels: ImageArray, labelled: Labelled, vocabulary: Vocabulary
    ) -> Segmentation:
        kept = labelled.kept
        return Segmentation(
            labels=vocabulary.labels(labelled.labels, kept),
            confidence=labelled.confidence,
            names=vocabulary.names,
            image=pixels,
            note=self.note,
            kept=len(vocabulary.embeddings if kept is None else kept),
        )

    def _chosen(
        self, shortlist: Keep | Shortlist | None, vocabulary: Vocabulary
    ) -> Shortlist | None:
        group = self.bundle.manifest.constants.group
        return Shortlist.of(shortlist, len(vocabulary.embeddings), group)

    def _check(self, vocabulary: object) -> None:
        if not isinstance(vocabulary, Vocabulary):
            raise InputError(
                f"vocabulary is {type(vocabulary).__name__}, expected a Vocabulary; make one with "
                "segmenter.vocabulary([...])"
            )
        if vocabulary.model != self._texts.model_key:
            raise InputError(
                "the vocabulary was made with another model's text encoder; make it with this "
                "Segmenter: segmenter.vocabulary([...])"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EscNetError("this Segmenter is closed; make a new one")


def _free(lock: threading.RLock, owned: ExitStack, process: int) -> None:
    """Close what a Segmenter of a process owned; a copy in a forked process owns nothing.

    Nobody calls it any more, but for a daemon thread while the process ends. That one is waited for
    as long as a user would wait; if it goes on, what it uses is left to it.
    """
    if os.getpid() != process:
        return
    if not lock.acquire(timeout=_END_SECONDS):
        _LOG.warning("a thread still used a Segmenter when the process ended; it was not closed")
        return
    try:
        owned.close()
    finally:
        lock.release()


def _cache_folder(cache: str | os.PathLike[str] | None) -> Path | None:
    if cache is None:
        return None
    return default_cache_directory() if cache == "default" else Path(cache)


def _check_window(window: str) -> None:
    if window not in ("none", "sliding"):
        raise InputError(f"window is {window!r}, expected 'none' or 'sliding'")


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least 1")
    return value
