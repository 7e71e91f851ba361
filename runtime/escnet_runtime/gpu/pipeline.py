"""Images on a device: one upload and one download each, and the host waits for nothing between."""

import itertools
import logging
import time
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from ..device.base import Device, DeviceMemory, Graph, HostMemory
from ..errors import DeviceError, EscNetError, OutOfDeviceMemory
from ..groups import whole_groups
from ..images import ImageArray
from ..kernels import KERNELS, DeviceImage, PreprocessPlan, nv12_rgb_launch, preprocess_plan
from ..manifest import Manifest
from ..order import image_steps
from .backend import DeviceBackend
from .layout import Layout, bucket_of, picture_offsets
from .layout_plan import make_layout
from .memory import IN_FLIGHT, MemoryPlan, memory_plan, slot_plan, what_fits
from .pixels import Pixels, pixels_of, taken_pixels
from .program import Program, Scaling
from .slots import Slot, SlotPool

__all__ = ["DevicePipeline", "InFlight", "Picture", "StageTimes"]

_LOG = logging.getLogger("escnet_runtime")
_PROGRAMS: Final = 8  # buckets and sizes of image that are kept ready
#: Images between two whose graphs are waited for, where a backend keeps something until then.
_TIDY_EVERY: Final = 256

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Rows of the text embeddings [H,W], uint8 or uint16, and their confidence, float16 [H,W].

    ``image`` is uint8 [H,W,3] where the pixels came from the device, or as NV12; else None.
    """

    labels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    confidence: npt.NDArray[np.float16]
    image: ImageArray | None = None


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Milliseconds of each stage of one image.

    Attributes:
        device: between the ends of the stage and of the one before, by the device's clock. Where
            the device waits for the host to enqueue the next kernel, that is in it.
        host: what enqueueing the stage took the host. A stage with as much here as on the device
            is held up by the host.
    """

    device: dict[str, float]
    host: dict[str, float]


@dataclass(slots=True, eq=False)
class _Ready:
    """A program with what it owns; ``graph`` is the same captured, once it has run."""

    program: Program
    tables: DeviceMemory
    graph: Graph | None = None
    eager: bool = False

    @property
    def layout(self) -> Layout:
        return self.program.layout

    @property
    def crops(self) -> int:
        """How often each graph runs for an image."""
        windows = self.layout.windows
        return 1 if windows is None else len(windows.pixel_offsets) + 1

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()
        self.tables.close()


@dataclass(frozen=True, slots=True, eq=False)
class InFlight:
    """An image on its way, to be given to :meth:`DevicePipeline.finish` or ``drop``, once."""

    slot: Slot
    layout: Layout
    pixels: Pixels


class DevicePipeline:
    """Runs a model's graphs on a device.

    One image after the other computes, in the order of :meth:`submit`; while one does, another may
    be uploaded and a third downloaded. All of it is for one thread at a time.

    Args:
        device: where; belongs to the caller.
        backend: runs the graphs; closed with the pipeline.
        manifest: of the bundle.
        chunk: the most categories a graph is given at once, rounded up to whole groups. Made
            smaller, with a warning, where memory does not suffice.
    """

    def __init__(
        self, device: Device, backend: DeviceBackend, manifest: Manifest, *, chunk: int
    ) -> None:
        self._device, self._backend, self._manifest = device, backend, manifest
        self._group = manifest.constants.group
        self.chunk = whole_groups(chunk, self._group)
        self._stream = backend.stream()
        self._owned = ExitStack()
        self._uploads = self._owned.enter_context(device.stream())
        self._downloads = self._owned.enter_context(device.stream())
        self._slots = self._owned.enter_context(SlotPool(device))
        self._arena: DeviceMemory | None = None
        self._programs: OrderedDict[tuple[int, tuple[int, int], bool], _Ready] = OrderedDict()
        # The embeddings that lie in the arena, the bucket that they are padded to, and the chunk.
        self._text: tuple[_Floats, int, int] | None = None
        self._staging: HostMemory | None = None
        self._sent = self._owned.enter_context(device.event())
        self._tried: set[tuple[int, int]] = set()  # bucket and chunk of what has run
        self._graph_bytes: int | None = None
        self._said_eager = False
        self._untidy_images = 0

    @property
    def backend(self) -> DeviceBackend:
        """The backend that runs the graphs."""
        return self._backend

    def submit(
        self,
        pixels: ImageArray | Pixels,
        text: _Floats,
        *,
        sliding: bool = False,
    ) -> InFlight:
        """Enqueue one image and return at once.

        Args:
            pixels: uint8 [H,W,3]; not looked at afterwards. Or NV12 on the host
                (:func:`.pixels.frame_pixels`), which is downloaded as RGB with its picture. Or what
                was :meth:`taken` from the device: nothing is uploaded then, and the image is
                downloaded with its picture.
            text: float32 [N,D], unit norm; kept, and taken for the same as long as it is the same
                object, so it must not change.
            sliding: in sliding windows: all of them on the device, with one upload and download.

        Raises:
            BackendError: a graph failed.
            InputError: the model's sizes allow no windows.
            OutOfDeviceMemory: also the smallest chunk does not fit; says what would.
        """
        source = pixels if isinstance(pixels, Pixels) else pixels_of(pixels)
        size = source.size
        while True:
            try:
                ready = self._prepared(len(text), size, sliding)
                self._send_text(text, ready.layout)
                return self._submit(source, ready)
            except OutOfDeviceMemory as error:
                self.shrink(error, len(text), size, sliding)

    def taken(self, array: object) -> Pixels:
        """An image of another library in the device's memory, ordered behind what makes it.

        Args:
            array: uint8 [H,W,3] RGB or [H,W,4] RGBA in C order, with ``__dlpack__`` or
                ``__cuda_array_interface__``, or an Nv12Frame of such arrays. It must not change
                before its result is there.

        Raises:
            ImageError: it is another shape.
            InputError: it is another type, or somewhere else.
        """
        return taken_pixels(array, self._device, self._stream)

    def finish(self, flight: InFlight) -> Picture:
        """Wait for an image and take its picture.

        Raises:
            DeviceError: something on the device failed.
            EscNetError: the pipeline has been closed.
        """
        slot, layout = flight.slot, flight.layout
        if not slot.open:
            raise EscNetError("this Segmenter was closed while the image was on its way")
        try:
            slot.done.synchronize()
            picture = _picture(slot.host.array, layout)
            return replace(picture, image=_image(slot, layout, flight.pixels))
        finally:
            self._slots.give_back(slot)

    def drop(self, flight: InFlight) -> None:
        """Wait for an image that nobody wants any more."""
        if flight.slot.open:
            self.finish(flight)

    def plan(self, categories: int, size: tuple[int, int], *, sliding: bool = False) -> MemoryPlan:
        """Plan such images; allocates their memory now and runs the graphs once.

        Raises:
            OutOfDeviceMemory: also the smallest chunk does not fit; says what would.
        """
        while True:
            try:
                layout = self._prepared(categories, size, sliding).layout
                self._fill_slots(layout)
            except OutOfDeviceMemory as error:
                self.shrink(error, categories, size, sliding)
            else:
                break
        known, taken = self._backend.resident_bytes, self._graph_bytes or 0
        return memory_plan(
            layout,
            slot_bytes=IN_FLIGHT * slot_plan(layout).any_image.device,
            backend_bytes=max(taken, known),
            measured=taken >= known,
        )

    def make_room(self) -> None:
        """Wait for everything, and free what can be made again; images on their way stay."""
        self._settle()
        self._forget()
        self._backend.unload()

    def shrink(
        self, error: OutOfDeviceMemory, categories: int, size: tuple[int, int], sliding: bool
    ) -> None:
        """Free everything and make the chunk smaller, for who then tries again.

        Args:
            error: what was said; where it came from is forgotten, as it holds memory.
            categories: that were to be computed, on an image of ``size`` pixels.
            size: height and width.
            sliding: with sliding windows.

        Raises:
            OutOfDeviceMemory: the chunk is the smallest; says what would fit.
        """
        error.let_go()
        scratch = self._backend.scratch_bytes()  # known as long as the graphs are there
        self.make_room()
        bucket = bucket_of(categories)
        chunk = min(self.chunk, whole_groups(bucket, self._group))
        if chunk <= self._group:
            advice = what_fits(
                self._manifest,
                categories,
                size,
                sliding=sliding,
                scratch=scratch,
                free=self._device.memory(),
                weights=sum(
                    self._manifest.stages[name].bytes for name in _image_graphs(self._manifest)
                ),
            )
            raise OutOfDeviceMemory(f"{error}. {advice}") from error
        smaller = whole_groups(chunk // 2, self._group)
        smaller = smaller if smaller < chunk else chunk - self._group
        _LOG.warning(
            "the GPU's memory does not suffice for %d categories at a time (%s); trying %d, which "
            "gives the same and takes longer",
            chunk,
            error,
            smaller,
        )
        self.chunk = smaller

    def profile(self, pixels: ImageArray, text: _Floats) -> StageTimes:
        """What each stage of one image takes, on the device and the host.

        Run step by step, without a CUDA graph, and waited for once at the end.
        """
        self.finish(self.submit(pixels, text))  # all is loaded, and the image is there
        program = self._prepared(len(text), (pixels.shape[0], pixels.shape[1])).program
        spent = StageTimes(device={}, host={})
        with ExitStack() as owned:
            events = [
                owned.enter_context(self._device.event(timing=True))
                for _ in range(len(program.operations) + 1)
            ]
            self._device.record(events[0], self._stream)
            for operation, event in zip(program.operations, events[1:], strict=True):
                start = time.perf_counter()
                operation.enqueue()
                _added(spent.host, operation.stage, 1e3 * (time.perf_counter() - start))
                self._device.record(event, self._stream)
            self._stream.synchronize()
            for operation, (before, after) in zip(
                program.operations, itertools.pairwise(events), strict=True
            ):
                _added(spent.device, operation.stage, after.since(before))
        return spent

    def close(self) -> None:
        """Wait for what is under way and free everything."""
        self._settle()
        self._forget()
        if self._staging is not None:
            self._staging.close()
        self._owned.close()
        self._backend.close()

    def _prepared(self, categories: int, size: tuple[int, int], sliding: bool = False) -> _Ready:
        """The program for a bucket and a size of image, with its memory."""
        key = (bucket_of(categories), size, sliding)
        if key in self._programs:
            self._programs.move_to_end(key)
            return self._programs[key]
        before = self._device.memory()[0]
        self._backend.load(*_image_graphs(self._manifest))
        layout = make_layout(
            self._manifest,
            categories,
            size,
            min(self.chunk, self._backend.most_rows or self.chunk),
            scratch=self._backend.scratch_bytes(),
            sliding=sliding,
        )
        arena, grown = self._reserved(layout.bytes)
        ready = self._made(layout, arena)
        self._programs[key] = ready
        taken = before - self._device.memory()[0] - grown
        # What graphs take inside grows with the chunk and stays; later programs may add to it.
        self._graph_bytes = (self._graph_bytes or 0) + max(taken, 0)
        if len(self._programs) > _PROGRAMS:
            self._programs.popitem(last=False)[1].close()
        return ready

    def _made(self, layout: Layout, arena: int) -> _Ready:
        """The program of a layout, tried out.

        It runs once on zeros, so that kernels are compiled and libraries have settled: what runs
        out of memory does so here, and not in the middle of an image.
        """
        plans = self._scalings(layout)
        content = np.concatenate([plan.tables for plan in plans])
        size = content.nbytes
        with ExitStack() as owned:
            tables = owned.enter_context(self._device.allocate(size))
            owned.callback(self._settle)  # before what failed is freed
            starts = [0, *itertools.accumulate(plan.tables.nbytes for plan in plans[:-1])]
            program = Program(
                layout,
                arena,
                tuple(
                    Scaling(plan, tables.address + at)
                    for plan, at in zip(plans, starts, strict=True)
                ),
                device=self._device,
                backend=self._backend,
                manifest=self._manifest,
            )
            with self._device.allocate_host(size) as staging:
                staging.array[:size] = content.view(np.uint8)
                self._device.upload(tables.address, staging, size, self._stream)
                self._stream.synchronize()
            shape = (layout.bucket, layout.chunk)
            if shape not in self._tried:
                self._text = None
                self._device.prepare(*KERNELS)
                self._device.fill(arena, 0, layout.bytes, self._stream)
                with self._backend.tidying():
                    program.enqueue()
                self._stream.synchronize()
                self._tried.add(shape)
            owned.pop_all()
            return _Ready(program, tables)

    def _scalings(self, layout: Layout) -> list[PreprocessPlan]:
        """From pixels to the encoder's input, in the order of :class:`Program`."""
        spec = self._manifest.constants.preprocessing
        whole = preprocess_plan(spec, layout.size)
        if layout.windows is None:
            return [whole]
        return [preprocess_plan(spec, layout.size, canvas=layout.windows.canvas_pixels), whole]

    def _reserved(self, size: int) -> tuple[int, int]:
        """The arena's address, of so many bytes at least, and by how many it has grown."""
        if self._arena is not None and self._arena.size >= size:
            return self._arena.address, 0
        self._settle()
        before = self._arena.size if self._arena is not None else 0
        self._drop_arena()  # first, so that both never exist
        self._arena = self._device.allocate(size)
        return self._arena.address, size - before

    def _submit(self, pixels: Pixels, ready: _Ready) -> InFlight:
        layout, device = ready.layout, self._device
        assert self._arena is not None
        picture = self._arena.address + layout.fixed["picture"].offset
        plan, kind = slot_plan(layout), (pixels.layout, bool(pixels.device), pixels.bytes)
        slot = self._slots.take(plan.any_image.with_room_for(plan.needs(*kind)))
        try:
            front = slot.memory.address
            source = front + plan.source(pixels.layout)
            self._bring(pixels, slot, source)
            image = pixels.at(source)
            self._run(ready, image)
            device.copy(front, picture, layout.picture_bytes, self._stream)
            if pixels.layout == "nv12":
                device.launch(nv12_rgb_launch(image, front + plan.image), self._stream)
            device.record(slot.computed, self._stream)
            device.wait(self._downloads, slot.computed)
            device.download(slot.host, front, plan.downloaded(*kind), self._downloads)
            device.record(slot.done, self._downloads)
        except BaseException:
            self._settle()
            self._slots.discard(slot)
            raise
        return InFlight(slot, layout, pixels)

    def _bring(self, pixels: Pixels, slot: Slot, target: int) -> None:
        """Have the pixels at an address in the slot before what the stream does next."""
        device = self._device
        for part in pixels.device:
            # A copy, so that the image is the caller's again once it has been computed with.
            device.copy(target, part.address, part.nbytes, self._stream)
            target += part.nbytes
        if pixels.host:
            pixels.write(slot.host.array)
            device.upload(target, slot.host, pixels.bytes, self._uploads)
            device.record(slot.uploaded, self._uploads)
            device.wait(self._stream, slot.uploaded)

    def _run(self, ready: _Ready, image: DeviceImage) -> None:
        """Everything between upload and download; captured where that can be."""
        for launch in ready.program.resize(image):
            self._device.launch(launch, self._stream)
        if self._backend.capturable and ready.graph is None and not ready.eager:
            self._capture(ready)
        if ready.graph is not None:
            ready.graph.launch(self._stream)
            return
        if self._untidy_images >= _TIDY_EVERY and self._backend.untidy:
            self._untidy_images = 0
            with self._backend.tidying():
                ready.program.enqueue()
        else:
            self._untidy_images += ready.crops
            ready.program.enqueue()

    def _capture(self, ready: _Ready) -> None:
        try:
            ready.graph = self._device.capture(self._stream, ready.program.enqueue)
        except OutOfDeviceMemory:
            raise
        except EscNetError as error:
            ready.eager = True
            if not self._said_eager:
                self._said_eager = True
                _LOG.warning(
                    "no CUDA graph of a whole image here (%s); its %d parts are launched one by "
                    "one, which is slower and gives the same",
                    error,
                    len(ready.program.operations),
                )

    def _send_text(self, text: _Floats, layout: Layout) -> None:
        """Put a vocabulary into the arena, unless it is there."""
        there = self._text
        if there and there[0] is text and there[1:] == (layout.bucket, layout.chunk):
            return
        assert self._arena is not None
        begin, value = layout.fixed["text"].offset, layout.fixed["text"].value
        size = begin + value.bytes  # behind their number
        # Padding repeats real categories: a graph sees nothing that it would not see anyway.
        padded = text[np.arange(layout.bucket) % len(text)]
        self._text = None
        staging = self._staging_of(size)
        staging.array[:4] = np.array([len(text)], np.int32).view(np.uint8)
        for rows, start in value.parts():
            part = padded[rows].reshape(-1).view(np.uint8)
            staging.array[begin + start :][: part.nbytes] = part
        self._device.upload(self._arena.address, staging, size, self._stream)
        self._device.record(self._sent, self._stream)
        self._text = text, layout.bucket, layout.chunk

    def _staging_of(self, size: int) -> HostMemory:
        """Where a vocabulary is sent from, once the last one has gone."""
        self._sent.synchronize()
        if self._staging is None or len(self._staging.array) < size:
            if self._staging is not None:
                self._staging.close()
                self._staging = None
            self._staging = self._device.allocate_host(size)
        return self._staging

    def _fill_slots(self, layout: Layout) -> None:
        """Have the memory for all images that may be on their way."""
        size = slot_plan(layout).any_image
        taken = []
        try:
            for _ in range(IN_FLIGHT):
                taken.append(self._slots.take(size))
        finally:
            for slot in taken:
                self._slots.give_back(slot)

    def _settle(self) -> None:
        """Wait for everything; what failed has been or will be said by who waits for it."""
        for stream in (self._uploads, self._stream, self._downloads):
            try:
                stream.synchronize()
            except DeviceError as error:
                _LOG.debug("while waiting for the device: %s", error)

    def _forget(self) -> None:
        """Free what was made ready; nothing may be computing. Pictures that are done stay."""
        self._slots.drop_free()
        self._drop_arena()
        self._graph_bytes = None
        self._tried.clear()

    def _tidy(self) -> None:
        """Have the backend free what it keeps, as long as there is memory to run its graphs on."""
        if not self._backend.untidy or not self._programs:
            return
        ready = next(reversed(self._programs.values()))
        try:
            with self._backend.tidying():
                ready.program.enqueue()
            self._stream.synchronize()
        except EscNetError as error:  # what failed has been said
            _LOG.debug("while a backend was to free what it keeps: %s", error)
            self._settle()  # a part of it may be under way, on memory that is freed next

    def _drop_arena(self) -> None:
        self._tidy()
        while self._programs:
            self._programs.popitem()[1].close()
        self._text = None
        if self._arena is not None:
            self._arena.close()
            self._arena = None


def _image_graphs(manifest: Manifest) -> list[str]:
    """The graphs that an image runs through."""
    steps = image_steps(manifest.model.blocks, 1)
    return [step.stage for step in steps if step.kind != "prompts"]


def _image(slot: Slot, layout: Layout, pixels: Pixels) -> ImageArray | None:
    """A copy of the image, where the caller has no RGB of it on the host."""
    plan = slot_plan(layout)
    if not pixels.device and pixels.layout != "nv12":
        return None
    size = plan.rgb if pixels.layout == "nv12" else pixels.bytes
    packed = slot.host.array[plan.image :][:size].reshape(*layout.size, -1)
    return packed[:, :, :3].copy()


def _picture(content: npt.NDArray[np.uint8], layout: Layout) -> Picture:
    """Copies of labels and confidence out of what was downloaded."""
    height, width = layout.size
    labels_end, end = picture_offsets(height * width, layout.label_bytes)
    narrow = content[: height * width * layout.label_bytes].copy()
    labels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] = narrow
    if layout.label_bytes == 2:
        labels = narrow.view(np.uint16)
    confidence = content[labels_end:end].copy().view(np.float16)
    return Picture(labels.reshape(height, width), confidence.reshape(height, width))


def _added(spent: dict[str, float], stage: str, milliseconds: float) -> None:
    spent[stage] = spent.get(stage, 0.0) + milliseconds
