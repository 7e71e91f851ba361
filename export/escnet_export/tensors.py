"""Tensors of many images, kept on disk because they may not fit into memory.

At 150 categories of ``vit-b-16`` the inputs and outputs of all graphs are 1.3 GB an image, and int8
is calibrated on hundreds of images. With memory to spare the system caches the file anyway.
"""

import hashlib
import math
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from escnet_runtime.backends.base import Array
from escnet_runtime.closing import Closing

__all__ = ["StoredTensors", "TensorStore", "digest"]

_ALIGNMENT: Final = 64


def digest(array: Array) -> bytes:
    """A hash of type, shape and content: equal only for arrays that are equal bit by bit."""
    found = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    found.update(_content(array))
    return found.digest()


def _content(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@dataclass(frozen=True, slots=True)
class _Place:
    digest: bytes
    offset: int
    dtype: npt.DTypeLike
    shape: tuple[int, ...]


class TensorStore(Closing):
    """An unnamed temporary file for arrays, which writes equal arrays only once.

    Outputs of one graph are mostly inputs of the next and are not written again. The file vanishes
    with the process, however that ends, or earlier: by ``close`` or with its last user.

    Args:
        folder: a folder on the disk to use; by default the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - by close
        weakref.finalize(self, self._file.close)
        self._places: dict[bytes, _Place] = {}

    def close(self) -> None:
        """Free the disk space; stored arrays can no longer be read."""
        self._file.close()

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self._file.seek(0, 2)

    def put(self, arrays: Mapping[str, Array]) -> "StoredTensors":
        """Store copies of ``arrays``; the caller may change the originals afterwards.

        Raises:
            OSError: the disk is full.
        """
        return StoredTensors(self, {name: self._put(array) for name, array in arrays.items()})

    def _put(self, array: Array) -> _Place:
        key = digest(array)
        if key not in self._places:
            offset = math.ceil(self.bytes / _ALIGNMENT) * _ALIGNMENT
            self._file.seek(offset)
            self._file.write(_content(array))
            self._file.flush()  # so that a full disk is an error here and not at the next read
            self._places[key] = _Place(key, offset, array.dtype, array.shape)
        return self._places[key]

    def _read(self, place: _Place) -> Array:
        array = np.empty(place.shape, place.dtype)
        self._file.seek(place.offset)
        if self._file.readinto(_content(array)) != array.nbytes:
            raise OSError("a temporary file of tensors is shorter than what was written into it")
        return array


class StoredTensors(Mapping[str, Array]):
    """Stored arrays by name; each access reads a new copy, which the caller owns."""

    def __init__(self, store: TensorStore, places: Mapping[str, _Place]) -> None:
        self._store, self._places = store, places

    def __getitem__(self, name: str) -> Array:
        return self._store._read(self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def digests(self) -> dict[str, bytes]:
        """:func:`digest` of each array, without reading it."""
        return {name: place.digest for name, place in self._places.items()}
