"""What an image needs on the device, as a table, before the first one runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from .layout import Grows, Layout, Value

__all__ = ["MemoryPlan", "MemoryRow", "memory_plan"]


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
        """For people: plain text, a line a tensor."""
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
