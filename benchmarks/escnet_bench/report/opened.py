"""A result file whose outer structure was checked, and the reading of its rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from escnet_runtime.errors import InputError

from .facts import Machine, Result
from .schema import BundleOf, taken

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Fill", "Opened"]

_T = TypeVar("_T", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A file whose outer structure was checked; its ``rows`` were not yet."""

    file: str
    document: Mapping[str, Any]
    rows: Sequence[Any]
    machine: Machine
    bundle: BundleOf | None

    def each(self, kind: type[_T]) -> Iterator[tuple[_T, Mapping[str, Any]]]:
        """The rows, read as ``kind``, each with the raw object of the file."""
        for index, row in enumerate(self.rows):
            yield taken(row, kind, f"{self.file}: rows[{index}]"), row

    def entries(self, key: str, kind: type[_T]) -> Iterator[_T]:
        """The entries of a list beside the rows; none if it is not there."""
        given = self.document.get(key) or []
        if not isinstance(given, list):
            raise InputError(f"{self.file}: {key}: got {type(given).__name__}, expected a list")
        for index, entry in enumerate(given):
            yield taken(entry, kind, f"{self.file}: {key}[{index}]")

    @property
    def where(self) -> dict[str, Any]:
        """The fields that name a fact's source."""
        return {"machine": self.machine, "file": self.file}

    @property
    def sha256(self) -> str | None:
        """Of the bundle."""
        return None if self.bundle is None else self.bundle.sha256


Fill: TypeAlias = Callable[[Opened, Result], Result]
