"""What is measured, in which order, and how much of the time each part may take."""

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

#: Every implementation, the most important first: that order decides where time is short.
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
#: Another model, whose labels and operations are not ours.
PEER: Final = "torch-cat-seg"
#: What others are divided by and compared with: the first of these that ran.
OURS: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
_SHARED: Final = (*OURS, "torch", "torch-shared-compile-static")
#: Category number → share of the time, in parts; the first cells also bear the compilations.
_WEIGHTS: Final = {19: 6.0, 150: 9.0, 58: 3.0, 847: 1.0}
_FEW_FIRST: Final = (19, 150, 58, 847)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An implementation and the precision that it computes in."""

    implementation: str
    precision: str

    @property
    def name(self) -> str:
        """For people and as a key."""
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
        """Whether it is compiled once, for every number of categories."""
        return self.implementation.endswith("dynamic")

    @property
    def form(self) -> Form:
        """The form of the model that it computes."""
        return "shared" if self.implementation in _SHARED else "plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Implementations that take turns: one number of categories, one allocator."""

    categories: int
    allocator: Allocator

    @property
    def weight(self) -> float:
        """Its share of the time."""
        return _WEIGHTS.get(self.categories, 2.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run of the benchmark is asked for.

    Attributes:
        variants: the most important first.
        cells: in the order in which they are measured.
        seconds: for everything that is left to do.
        repeats: rounds of a cell, at most; at least three are made.
        warm_up: rounds that are not counted, where time allows.
        memory_share: of the time that is kept for measuring memory.
    """

    variants: tuple[Variant, ...]
    cells: tuple[Cell, ...]
    seconds: float
    repeats: int
    warm_up: int
    memory_share: float = 0.12


def cells(categories: Sequence[int], allocators: Sequence[Allocator]) -> tuple[Cell, ...]:
    """All of them, the important ones first."""
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
