"""Shared by all kernel launches."""

import ctypes
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from escnet_runtime.errors import InputError

__all__ = ["THREADS", "FloatType", "Launch", "blocks", "type_code"]

FloatType: TypeAlias = Literal["float32", "float16", "bfloat16"]
Argument: TypeAlias = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.c_double

#: Threads a block where each works by itself.
THREADS: Final = 256

_FLOAT_TYPES: tuple[str, ...] = get_args(FloatType)  # the order of the enumerations in the sources


@dataclass(frozen=True, kw_only=True, eq=False)
class Launch:
    """A kernel with its grid, its block and its arguments, in the order of the source."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]

    def addresses(self) -> "ctypes.Array[ctypes.c_void_p]":
        """The addresses of the arguments, ``kernelParams`` of ``cuLaunchKernel``.

        They point into this object: keep it until the launch has returned.
        """
        pointers = [ctypes.addressof(one) for one in self.arguments]
        return (ctypes.c_void_p * len(pointers))(*pointers)


def blocks(elements: int) -> int:
    """Blocks of THREADS threads for so many elements, one a thread."""
    return -(-elements // THREADS)


def type_code(float_type: str) -> int:
    """The number that stands for a type in the sources."""
    if float_type not in _FLOAT_TYPES:
        raise InputError(f"got type {float_type!r}; expected one of {', '.join(_FLOAT_TYPES)}")
    return _FLOAT_TYPES.index(float_type)
