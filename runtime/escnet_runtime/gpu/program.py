"""The work of one image as a list of calls on fixed addresses, made once for a layout.

With sliding windows, the calls of a crop are made once and stand in the list once for each crop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..device.base import Device, Stream
from ..kernels import (
    DeviceImage,
    Launch,
    PpgBuffers,
    PpgParts,
    PreprocessPlan,
    UpsampleBuffers,
    accumulate_launch,
    canvas_launch,
    group_weights_launch,
    normalise_launch,
    ppg_launch,
    resize_launch,
    upsample_argmax_launch,
)
from ..manifest import Manifest
from ..order import SUMS
from ..windows import WindowPlan
from .backend import Binding, DeviceBackend
from .layout import Call, Layout, View, picture_offsets

__all__ = ["Operation", "Program", "Scaling"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A graph or a kernel; ``stage`` is what its time counts as."""

    stage: str
    enqueue: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Scaling:
    """A plan of the pre-processing, and the address of a copy of its tables."""

    plan: PreprocessPlan
    tables: int


class Program:
    """The work of one image of a layout.

    Args:
        layout: the places of all tensors.
        arena: address of ``layout.bytes`` bytes.
        scaling: how pixels become the encoder's input; with windows, that of the canvas that they
            are cut from, and behind it that of the whole image.
        device: launches the kernels.
        backend: runs the graphs.
        manifest: of the bundle.

    Raises:
        BackendError: a graph cannot be loaded or bound.
        OutOfDeviceMemory: the graphs do not fit.
    """

    def __init__(
        self,
        layout: Layout,
        arena: int,
        scaling: tuple["Scaling", ...],
        *,
        device: Device,
        backend: DeviceBackend,
        manifest: Manifest,
    ) -> None:
        maker = _Maker(layout, arena, scaling, device, backend, manifest, backend.stream())
        self.layout = layout
        self._maker = maker
        self.operations = maker.image() if layout.windows is None else maker.crops(layout.windows)

    def resize(self, pixels: DeviceImage) -> list[Launch]:
        """Bring an image that lies on the device into the arena."""
        return self._maker.resize(pixels)

    def enqueue(self) -> None:
        """Give all of it to the stream, behind :meth:`resize`."""
        for operation in self.operations:
            operation.enqueue()


@dataclass(frozen=True, slots=True)
class _Maker:
    layout: Layout
    arena: int
    scaling: tuple[Scaling, ...]
    device: Device
    backend: DeviceBackend
    manifest: Manifest
    stream: Stream

    def image(self) -> list[Operation]:
        """The operations of an image that is looked at once, as a whole."""
        found = self.front(self.scaling[0], "resized")
        for call in self.layout.calls:
            found += self.operations(call)
            if call.step.kind == "decoder":
                found.append(self._kernel("upsample_argmax", self._upsample(call)))
        return found

    def crops(self, windows: WindowPlan) -> list[Operation]:
        """The operations of an image that is looked at in sliding windows and as a whole."""
        calls = [(call, self.operations(call)) for call in self.layout.calls]
        canvas, whole = self.scaling
        fronts = [self.front(canvas, "resized", offset) for offset in windows.pixel_offsets]
        fronts.append(self.front(whole, "resized_whole"))
        found = []
        for crop, front in enumerate(fronts):
            found += front
            for call, operations in calls:
                found += operations
                if call.step.kind == "decoder":
                    found.append(self._kernel("windows", self._canvas(call, windows, crop)))
        return [*found, self._kernel("upsample_argmax", self._upsample(None))]

    def front(
        self, scaling: Scaling, resized: str, offset: tuple[int, int] = (0, 0)
    ) -> list[Operation]:
        """Operations before the first graph, which also write ``weight``: its memory is reused."""
        layout = self.layout
        group, weight = self.manifest.constants.group, self._value("weight")
        part = weight.value.part
        weights = group_weights_launch(
            self.at(weight),
            categories=layout.bucket,
            group=group,
            active=self.at(layout.fixed["active"]),
            parts=(part * group, weight.value.step // 4) if part else None,
        )
        normalise = normalise_launch(
            scaling.plan,
            tables=scaling.tables,
            scratch=self.at(self._value(resized)),
            output=self.at(self._value("image")),
            offset=offset,
        )
        return [self._kernel("weights", weights), self._kernel("preprocess", normalise)]

    def resize(self, pixels: DeviceImage) -> list[Launch]:
        """Bring an image that lies on the device into the arena."""
        return [
            resize_launch(
                one.plan, pixels, tables=one.tables, scratch=self.at(self._value(resized))
            )
            for one, resized in zip(self.scaling, ("resized", "resized_whole"), strict=False)
        ]

    def operations(self, call: Call) -> list[Operation]:
        """The operations of one step: the graph, and what the runtime does with its outputs."""
        if call.step.kind == "prompts":
            return [self._kernel("prompts", self._ppg(call))]
        outputs = {
            port.name: call.writes[port.name]
            for port in self.manifest.stages[call.step.stage].outputs
        }
        run = self.backend.bind(
            call.step.stage,
            self._bindings(call.reads),
            self._bindings(outputs),
            scratch=self.at(self.layout.fixed["scratch"]) if "scratch" in self.layout.fixed else 0,
        )
        found = [Operation(call.step.stage, run)]
        for name in SUMS.keys() & call.writes.keys():
            found.append(self._kernel("sums", self._accumulate(call, name)))
        return found

    def at(self, view: View) -> int:
        """Address of a place."""
        return self.arena + view.offset

    def _value(self, name: str) -> View:
        """A value that exists once."""
        [value] = [value for value in self.layout.values if value.name == name]
        return View(value, 0, value.shape)

    def _bindings(self, views: Mapping[str, View]) -> dict[str, Binding]:
        return {
            name: Binding(self.at(view), view.value.dtype, view.shape)
            for name, view in views.items()
        }

    def _kernel(self, stage: str, launch: Launch) -> Operation:
        return Operation(stage, lambda: self.device.launch(launch, self.stream))

    def _ppg(self, call: Call) -> Launch:
        n, h, w = call.reads["scores"].shape
        buffers = PpgBuffers(
            scores=self.at(call.reads["scores"]),
            active=self.at(self.layout.fixed["active"]),
            **{name: self.at(view) for name, view in call.writes.items()},
        )
        places = {"scores": call.reads["scores"], **call.writes}
        part = places["scores"].value.part
        steps = {name: view.value.step // 4 for name, view in places.items()}  # of 4-byte elements
        return ppg_launch(
            buffers,
            (n, h, w),
            "float32",
            self.manifest.constants.ppg,
            parts=PpgParts(rows=part, **steps) if part else None,
        )

    def _accumulate(self, call: Call, name: str) -> Launch:
        parts, total = call.writes[name], call.writes[SUMS[name]]
        groups = parts.shape[0]
        elements = total.value.bytes // 4
        return accumulate_launch(
            self.at(parts),
            self.at(total),
            (groups, elements),
            group=self.manifest.constants.group,
            first_category=call.where.start,
            start=call.step.chunk == 0,
            active=self.at(self.layout.fixed["active"]),
        )

    def _canvas(self, call: Call, windows: WindowPlan, crop: int) -> Launch:
        logits = call.writes["logits"]
        return canvas_launch(
            self.at(logits),
            self.at(call.writes["canvas"]),
            windows,
            crop,
            categories=logits.shape[0],
            first_category=call.where.start,
            active=self.at(self.layout.fixed["active"]),
        )

    def _upsample(self, call: Call | None) -> Launch:
        """The launch that up-samples a call's logits; for None, the canvas with all categories."""
        layout = self.layout
        logits = layout.fixed["canvas"] if call is None else call.writes["logits"]
        height, width = layout.size
        labels = self.at(layout.fixed["picture"])
        confidence, _ = picture_offsets(height * width, layout.label_bytes)
        n, h, w = logits.shape
        return upsample_argmax_launch(
            UpsampleBuffers(
                logits=self.at(logits),
                active=self.at(layout.fixed["active"]),
                best=self.at(self._value("best")),
                total=self.at(self._value("total")),
                labels=labels,
                confidence=labels + confidence,
            ),
            (n, h, w),
            "float32",
            first_category=0 if call is None else call.where.start,
            start=call is None or call.step.chunk == 0,
            classes=layout.bucket,
            size=layout.size,
        )
