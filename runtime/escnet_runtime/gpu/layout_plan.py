"""Planning a layout: the graphs are walked once, and every tensor that they write gets its place.

The order of the graphs (:mod:`escnet_runtime.order`) is walked for a bucket of categories and a
size of image. Each tensor that it writes is a value that lives from the step which writes it to the
last one that reads it; values whose lives do not touch share memory. Nothing is allocated here and
nothing runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ..errors import InputError
from ..groups import whole_groups
from ..kernels import preprocess_plan
from ..manifest import DType, Manifest, TensorSpec
from ..order import PROMPTS, READS, SUMS, WRITES, Step, image_steps, refined
from ..vocabulary import MAX_CATEGORIES
from ..windows import WindowPlan, plan_windows
from .layout import Call, Grows, Layout, Value, View, aligned, bucket_of, picture_offsets

__all__ = ["make_layout"]

#: What a vocabulary sends: in front of the arena, in this order and without a gap.
_VOCABULARY: Final = ("active", "text")
_MOST_CATEGORIES: Final = MAX_CATEGORIES + 1  # of a 16-bit label map; a multiple of every step
_NARROW_LABELS: Final = 256


def make_layout(
    manifest: Manifest,
    categories: int,
    size: tuple[int, int],
    chunk: int,
    *,
    scratch: int = 0,
    sliding: bool = False,
) -> Layout:
    """Plan for up to ``bucket_of(categories)`` categories and images of ``size`` pixels.

    Args:
        manifest: of the bundle.
        categories: at least 1.
        size: height and width.
        chunk: categories at a time, rounded up to whole groups.
        scratch: bytes that every graph may use while it runs, beside its tensors.
        sliding: with sliding windows.

    Raises:
        InputError: a number is out of range, or the model's sizes allow no windows.
    """
    if not 1 <= categories < _MOST_CATEGORIES or min(size) < 1 or chunk < 1:
        raise InputError(
            f"got {categories} categories in chunks of {chunk} and an image of "
            f"{size[0]}×{size[1]} pixels; expected 1 to {_MOST_CATEGORIES - 1} categories and "
            "sizes of at least 1"
        )
    bucket = bucket_of(categories)
    windows = _window_plan(manifest) if sliding else None
    planner = _Planner(manifest, bucket, size, chunk, windows)
    planner.fixed(scratch)
    planner.walk()
    values = tuple(planner.values)
    for value in values:
        if value.name in planner.places:  # fixed: never shared
            value.first, value.last = -1, planner.end
    total = _place(values)
    return Layout(
        bucket=bucket,
        chunk=max(part.stop - part.start for part in planner.chunks),
        size=size,
        label_bytes=planner.label_bytes,
        bytes=total,
        calls=tuple(planner.calls),
        values=values,
        fixed=planner.places,
        windows=windows,
    )


def _window_plan(manifest: Manifest) -> WindowPlan:
    """The plan of a model's sliding windows; raises InputError if its sizes allow none."""
    return plan_windows(manifest.constants.preprocessing.size, manifest.model.logits[0])


@dataclass(slots=True)
class _Planner:
    """The walk under way: which value each name stands for at this step."""

    manifest: Manifest
    bucket: int
    size: tuple[int, int]
    most: int
    windows: WindowPlan | None
    chunk: int = field(init=False)
    chunks: list[slice] = field(init=False)
    label_bytes: int = field(init=False)
    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    places: dict[str, View] = field(default_factory=dict)
    shared: dict[str, Value] = field(default_factory=dict)
    own: dict[tuple[str, int], Value] = field(default_factory=dict)
    end: int = 0

    def __post_init__(self) -> None:
        self.chunk = _chunk(self.bucket, self.most, self._group)
        starts = range(0, self.bucket, self.chunk)
        self.chunks = [slice(at, min(at + self.chunk, self.bucket)) for at in starts]
        self.label_bytes = 1 if self.bucket <= _NARROW_LABELS else 2

    @property
    def _group(self) -> int:
        return self.manifest.constants.group

    def fixed(self, scratch: int) -> None:
        """Add the values that stay in place between images."""
        pixels = self.size[0] * self.size[1]
        _, picture = picture_offsets(pixels, self.label_bytes)
        model = self.manifest.model
        self._fix("active", "int32", (1,), "nothing")
        text = (self.bucket, model.embed_dim)
        self._fix("text", "float32", text, "categories", part=self.chunk)
        self._fix("picture", "uint8", (picture,), "pixels")
        if scratch:
            self._fix("scratch", "uint8", (scratch,), "chunk")
        if self.windows is not None:
            side = self.windows.canvas_cells
            self._fix("canvas", "float32", (self.bucket, side, side), "categories")
            # All windows are cut from the first one, so it is made once and stays.
            for name, canvas in (("resized", self.windows.canvas_pixels), ("resized_whole", None)):
                self._fix(name, "uint8", (self._between(canvas),), "pixels")

    def walk(self) -> None:
        """Go through all steps of an image."""
        steps = list(image_steps(self.manifest.model.blocks, len(self.chunks)))
        self.end = len(steps)
        self._weights()
        for time, step in enumerate(steps):
            if step.kind == "prompts":
                self._prompts(time, step)
            else:
                self._graph(time, step)
        if self.windows is not None:  # the canvas becomes the picture
            self._picture(self.end)

    def _weights(self) -> None:
        rows = -(-self.bucket // self._group)
        self.shared["weight"] = self._value(
            *("weight", "float32", (rows, self._group), "categories", 0),
            part=self.chunk // self._group,
        )

    def _front(self, time: int) -> None:
        """What is made of the pixels before the encoder."""
        spec = self.manifest.constants.preprocessing
        if self.windows is None:
            self._value("resized", "uint8", (self._between(None),), "pixels", time)
        shape = (1, 3, spec.size, spec.size)
        self.shared["image"] = self._value("image", "float32", shape, "nothing", time)

    def _between(self, canvas: int | None) -> int:
        """Bytes of an image of which one axis has been resized."""
        spec = self.manifest.constants.preprocessing
        return preprocess_plan(spec, self.size, canvas=canvas).scratch_bytes

    def _prompts(self, time: int, step: Step) -> None:
        """All categories at once."""
        scores = self._read("scores", time)
        model, ppg = self.manifest.model, self.manifest.constants.ppg
        shapes: dict[str, tuple[DType, tuple[int, ...]]] = {
            "points": ("float32", (ppg.regions, 2)),
            "point_labels": ("int32", (ppg.regions,)),
            "regions": ("int32", model.grid),
            "probabilities": ("float32", model.grid),
        }
        writes = {}
        for name in PROMPTS:
            dtype, shape = shapes[name]
            rows = (self.bucket, *shape)
            value = self._value(name, dtype, rows, "categories", time, part=self.chunk)
            self.shared[name] = value
            writes[name] = _all(value)
        where = slice(0, self.bucket)
        self.calls.append(Call(step, where, {"scores": scores}, writes))

    def _graph(self, time: int, step: Step) -> None:
        stage = self.manifest.stages[step.stage]
        where = slice(0, 1) if step.chunk is None else self.chunks[step.chunk]
        outputs = {spec.name: spec for spec in stage.outputs}
        if step.kind == "image_encoder":
            self._front(time)
        reads = {name: self._read(name, time, step.chunk) for name in READS[step.kind]}
        writes = {}
        for name in WRITES[step.kind]:
            writes[name] = self._write(outputs[name], time, step)
            if name in SUMS:
                writes[SUMS[name]] = self._sum(outputs[name], time, step)
        if step.kind == "decoder":
            writes |= self._joined(time, where)
        self.calls.append(Call(step, where, reads, writes))

    def _write(self, spec: TensorSpec, time: int, step: Step) -> View:
        name = refined(spec.name)
        if step.chunk is None:
            value = self._value(name, spec.dtype, self._shape(spec, 1), "nothing", time)
            self.shared[name] = value
            return _all(value)
        where = self.chunks[step.chunk]
        rows = where.stop - where.start
        if name == "scores":  # the generator takes those of all categories as one array
            if step.chunk == 0:
                shape = self._shape(spec, self.bucket)
                part = self.chunk
                value = self._value(name, spec.dtype, shape, "categories", time, part=part)
                self.own[name, -1] = value  # the scores of the block before are still read
            value = self.own[name, -1]
            value.last = max(value.last, time)
            if step.chunk == len(self.chunks) - 1:
                self.shared[name] = self.own.pop((name, -1))
            return _rows(value, where)
        grows: Grows = "categories" if name == "embedding" else "chunk"
        value = self._value(name, spec.dtype, self._shape(spec, rows), grows, time)
        self.own[name, step.chunk] = value
        return _all(value)

    def _sum(self, spec: TensorSpec, time: int, step: Step) -> View:
        """The running sum of all chunks, as the graph that reads it wants it."""
        name = SUMS[spec.name]
        if step.chunk == 0:
            shape = self._shape(spec, 1)
            shape = shape if name == "enhanced_mean" else shape[1:]
            self.shared[name] = self._value(name, spec.dtype, shape, "nothing", time)
        value = self.shared[name]
        value.last = max(value.last, time)
        return _all(value)

    def _joined(self, time: int, where: slice) -> dict[str, View]:
        """Add the values that are made from logits."""
        if self.windows is None:
            return self._picture(time)
        return {"canvas": _rows(self.places["canvas"].value, where)}

    def _picture(self, time: int) -> dict[str, View]:
        """What up-sampling keeps of each pixel between chunks, and what it gives."""
        for name in ("best", "total"):
            if name not in self.shared:
                self.shared[name] = self._value(name, "float32", self.size, "pixels", time)
            self.shared[name].last = time
        return {name: _all(self.shared[name]) for name in ("best", "total")} | {
            "picture": self.places["picture"]
        }

    def _read(self, name: str, time: int, chunk: int | None = None) -> View:
        value = self.own.get((name, chunk)) if chunk is not None else None
        if value is not None:
            value.last = max(value.last, time)
            return _all(value)
        if name == "text":
            value = self.places[name].value
        else:
            value = self.shared[name]
            value.last = max(value.last, time)
        if chunk is None or value.grows != "categories":
            return _all(value)
        where = self.chunks[chunk]
        if name == "weight":
            first = where.start // self._group
            where = slice(first, first + -(-(where.stop - where.start) // self._group))
        return _rows(value, where)

    def _value(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        grows: Grows,
        time: int,
        *,
        part: int = 0,
    ) -> Value:
        part = part if part < shape[0] else 0
        value = Value(name, dtype, shape, grows, time, time, part)
        self.values.append(value)
        return value

    def _fix(
        self, name: str, dtype: DType, shape: tuple[int, ...], grows: Grows, *, part: int = 0
    ) -> None:
        self.places[name] = _all(self._value(name, dtype, shape, grows, 0, part=part))

    def _shape(self, spec: TensorSpec, rows: int) -> tuple[int, ...]:
        axes = {"n": rows, "g": -(-rows // self._group), "b": 1}
        return tuple(axes[axis] if isinstance(axis, str) else axis for axis in spec.shape)


def _chunk(bucket: int, most: int, group: int) -> int:
    """Categories of every chunk but the last: as many chunks as have to be, all but one alike.

    So the place of a category is a division, which kernels that see all of them at once do.
    """
    groups = -(-bucket // group)
    count = -(-groups * group // whole_groups(most, group))
    return group * -(-groups // count)


def _all(value: Value) -> View:
    return View(value, 0, value.shape)


def _rows(value: Value, where: slice) -> View:
    return View(value, value.start_of(where.start), (where.stop - where.start, *value.shape[1:]))


def _place(values: tuple[Value, ...]) -> int:
    """Give each value the lowest free place, the largest first; returns the bytes of the arena.

    The vocabulary lies in front of all: it stays where it is when the size of images changes.
    """
    placed: list[Value] = []  # by offset
    total = 0
    for value in sorted(values, key=_turn):
        value.offset = _gap(_neighbours(placed, value), aligned(value.bytes))
        total = max(total, value.offset + aligned(value.bytes))
        placed.append(value)
        placed.sort(key=lambda one: one.offset)
    return total


def _turn(value: Value) -> tuple[int, int, int]:
    front = _VOCABULARY.index(value.name) if value.name in _VOCABULARY else len(_VOCABULARY)
    return front, -value.bytes, value.first


def _neighbours(placed: list[Value], value: Value) -> Iterator[Value]:
    """Values that live at the same time, by offset."""
    return (one for one in placed if one.first <= value.last and value.first <= one.last)


def _gap(neighbours: Iterator[Value], size: int) -> int:
    """The lowest offset with so many free bytes."""
    free = 0
    for one in neighbours:
        if free + size <= one.offset:
            break
        free = max(free, one.offset + aligned(one.bytes))
    return free
