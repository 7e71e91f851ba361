"""What an image needs on the device: as a table before the first one runs, and what would fit."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..manifest import Manifest
from .layout import Grows, Layout, Value
from .layout_plan import make_layout
from .slots import SlotPlan

__all__ = ["IN_FLIGHT", "MemoryPlan", "MemoryRow", "memory_plan", "slot_plan", "what_fits"]

#: Images that may be on their way at once: one computes, one is copied.
IN_FLIGHT: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """A tensor of the arena: bytes of all that are alive at once, and what they grow with."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    bytes: int
    grows: Grows


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What lies on the device for images of one size and vocabularies of one bucket.

    Attributes:
        categories: the bucket: up to so many categories need no more.
        chunk: the most of them that a graph is given at once.
        size: height and width of the images in pixels.
        sliding: whether it is for sliding windows.
        rows: the tensors; those that never live at the same time share memory.
        arena_bytes: all tensors of an image.
        slot_bytes: images and pictures on their way, beside the arena.
        backend_bytes: what the loaded graphs hold, and what they take inside while they run.
        measured: whether ``backend_bytes`` is what the device's free memory fell by when the graphs
            were loaded and run once; else it is what their library or their files say.
    """

    categories: int
    chunk: int
    size: tuple[int, int]
    sliding: bool
    rows: tuple[MemoryRow, ...]
    arena_bytes: int
    slot_bytes: int
    backend_bytes: int
    measured: bool

    @property
    def total_bytes(self) -> int:
        """All together."""
        return self.arena_bytes + self.slot_bytes + self.backend_bytes

    def table(self) -> str:
        """The plan as plain text for people, one line a tensor."""
        height, width = self.size
        apart = sum(row.bytes for row in self.rows)
        graphs = "graphs, measured" if self.measured else "graphs, as far as is known"
        lines = [
            f"up to {self.categories} categories in chunks of {self.chunk}, images of "
            f"{height}×{width}{', in sliding windows' if self.sliding else ''}",
            _line("tensor", "type and shape", "at once", "MB", "grows with"),
            *(
                _line(row.name, f"{row.dtype} {list(row.shape)}", str(row.count), row.bytes, grows)
                for row in self.rows
                for grows in [row.grows if row.grows != "nothing" else ""]
            ),
            _line("arena", f"shared; apart {apart / 1e6:,.1f} MB", "", self.arena_bytes, ""),
            _line("in flight", "images and pictures", "", self.slot_bytes, "pixels"),
            _line(graphs, "weights and inside", "", self.backend_bytes, "chunk"),
            _line("total", "", "", self.total_bytes, ""),
        ]
        return "\n".join(lines)


def memory_plan(
    layout: Layout, *, slot_bytes: int, backend_bytes: int, measured: bool
) -> MemoryPlan:
    """The plan of a layout and of what lies beside its arena."""
    by_name: dict[str, list[Value]] = {}
    for value in layout.values:
        by_name.setdefault(value.name, []).append(value)
    rows = [_row(name, values) for name, values in by_name.items()]
    return MemoryPlan(
        categories=layout.bucket,
        chunk=layout.chunk,
        size=layout.size,
        sliding=layout.windows is not None,
        rows=tuple(sorted(rows, key=lambda row: -row.bytes)),
        arena_bytes=layout.bytes,
        slot_bytes=slot_bytes,
        backend_bytes=backend_bytes,
        measured=measured,
    )


def slot_plan(layout: Layout) -> SlotPlan:
    """The memory of an image that is on its way."""
    return SlotPlan(layout.size, layout.picture_bytes)


def what_fits(
    manifest: Manifest,
    categories: int,
    size: tuple[int, int],
    *,
    sliding: bool,
    scratch: int,
    weights: int,
    free: tuple[int, int],
) -> str:
    """Advice for a job that does not fit at the smallest chunk: what it needs, and what would fit.

    Args:
        manifest: of the bundle.
        categories: that were to be computed.
        size: height and width of the image in pixels.
        sliding: with sliding windows.
        scratch: bytes that every graph may use while it runs.
        weights: bytes of the weights of all graphs.
        free: bytes of the device that are free, with nothing of ours on it, and its total.

    Returns:
        A sentence, from plans at the smallest chunk; the number of categories is an estimate.
    """
    group = manifest.constants.group
    plan = partial(make_layout, manifest, size=size, chunk=group, scratch=scratch, sliding=sliding)
    few, more = 8 * group, 16 * group
    small, large, need = plan(few), plan(more), plan(categories)
    each = (large.bytes - small.bytes) / (more - few)
    slots = IN_FLIGHT * slot_plan(need).any_image.device
    rest = free[0] - weights - slots - small.bytes
    fitting = int(few + rest / each) if rest > 0 else 0
    advice = (
        f"about {min(fitting, categories - 1):,} categories would fit"
        if fitting
        else "no number of categories fits: make memory free, or use smaller images"
    )
    return (
        f"{categories:,} categories on an image of {size[0]}×{size[1]} pixels need "
        f"{need.bytes / 1e6:,.0f} MB of tensors at the smallest chunk ({group}) and "
        f"{weights / 1e6:,.0f} MB of weights; {free[0] / 1e6:,.0f} of {free[1] / 1e6:,.0f} MB are "
        f"free: {advice}"
    )


def _row(name: str, values: list[Value]) -> MemoryRow:
    largest = max(values, key=lambda value: value.bytes)
    count, size = _most_alive(values)
    return MemoryRow(
        name=name,
        dtype=largest.dtype,
        shape=largest.shape,
        count=count,
        bytes=size,
        grows=largest.grows,
    )


def _most_alive(values: Iterable[Value]) -> tuple[int, int]:
    """How many live at once, and their bytes, at the step where they take the most."""
    events: dict[int, list[tuple[int, int]]] = {}
    for value in values:
        events.setdefault(value.first, []).append((1, value.bytes))
        events.setdefault(value.last + 1, []).append((-1, -value.bytes))
    count = size = 0
    most = (0, 0)
    for time in sorted(events):
        count += sum(one for one, _ in events[time])
        size += sum(one for _, one in events[time])
        most = max(most, (size, count))
    return most[1], most[0]


def _line(name: str, what: str, count: str, size: int | str, grows: str) -> str:
    amount = size if isinstance(size, str) else f"{size / 1e6:,.2f}"
    return f"{name:<26} {what:<34} {count:>7} {amount:>10}  {grows}".rstrip()
