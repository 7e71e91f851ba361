"""The plan of a measurement: what, in which order, and how the time is shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from escnet_runtime.errors import InputError

from ..command_parts import require_categories

__all__ = [
    "IMPLEMENTATIONS",
    "OURS",
    "PEER",
    "Allocator",
    "Cell",
    "Form",
    "Settings",
    "Variant",
    "cells",
    "check_numbers",
]

Allocator: TypeAlias = Literal["default", "kept"]
Form: TypeAlias = Literal["plain", "shared"]

#: All implementations, the most important first: if time is short, the last ones are dropped.
IMPLEMENTATIONS: Final = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime",
    "torch-plain",
    "torch",
    "openvino",
    "torch-compile-static",
    "torch-compile-dynamic",
    "torch-shared-compile-static",
    "torch-naive-ppg",
    "torch-cat-seg",
)
#: An implementation of another model, with other labels and operations.
PEER: Final = "torch-cat-seg"
#: The first of these that ran is what others are divided by and compared with.
OURS: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
_SHARED: Final = (*OURS, "torch", "torch-shared-compile-static")
#: Number of categories → relative share of the time; compilations fall into the first cells.
_WEIGHTS: Final = {19: 6.0, 150: 9.0, 58: 3.0, 847: 1.0}
_FEW_FIRST: Final = (19, 150, 58, 847)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An implementation and the precision that it computes in."""

    implementation: str
    precision: str

    @property
    def name(self) -> str:
        """Its name for people, also used as a key."""
        return f"{self.implementation} {self.precision}"

    @property
    def ours(self) -> bool:
        """Whether the others are compared with it."""
        return self.implementation in OURS

    @property
    def torch(self) -> bool:
        """Whether PyTorch runs it."""
        return self.implementation.startswith("torch")

    @property
    def peer(self) -> bool:
        """Whether it is another model than ours."""
        return self.implementation == PEER

    @property
    def compiled(self) -> bool:
        """Whether its first call compiles for minutes."""
        return "compile" in self.implementation

    @property
    def dynamic(self) -> bool:
        """Whether one compilation serves all numbers of categories."""
        return self.implementation.endswith("dynamic")

    @property
    def form(self) -> Form:
        """The form of the model that it computes."""
        return "shared" if self.implementation in _SHARED else "plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A number of categories with an allocator; in a cell implementations take turns."""

    categories: int
    allocator: Allocator

    @property
    def weight(self) -> float:
        """Its relative share of the time."""
        return _WEIGHTS.get(self.categories, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run of the benchmark is asked for.

    Attributes:
        variants: the most important first.
        cells: in the order in which they are measured.
        seconds: time for everything that is left to do.
        repeats: largest number of rounds in a cell; the smallest is three.
        warm_up: rounds that are not counted, if time allows.
        memory_share: share of the time that is reserved for measuring memory.
    """

    variants: tuple[Variant, ...]
    cells: tuple[Cell, ...]
    seconds: float
    repeats: int
    warm_up: int
    memory_share: float = 0.12


def cells(categories: Sequence[int], allocators: Sequence[Allocator]) -> tuple[Cell, ...]:
    """All cells, the important ones first."""
    known = [number for number in _FEW_FIRST if number in categories]
    ordered = [*known, *sorted(set(categories) - set(known))]
    return tuple(
        Cell(categories=number, allocator=allocator)
        for number in ordered
        for allocator in get_args(Allocator)
        if allocator in allocators
    )


def check_numbers(categories: Sequence[int], repeats: int, minutes: float) -> None:
    """Refuse numbers that cannot be measured.

    Raises:
        InputError: says which.
    """
    require_categories(categories)
    if repeats < 3:
        raise InputError(f"--repeats is {repeats}, expected at least 3")
    if not 0 < minutes < float("inf"):
        raise InputError(f"--minutes is {minutes}, expected more than 0")
