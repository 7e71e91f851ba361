"""Result files: what a benchmark found and under which conditions, as one JSON object."""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from escnet_runtime.atomic import atomic_file

from .conditions import Conditions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "SCHEMA_VERSION",
    "Document",
    "plain",
    "result_document",
    "saving",
    "without_folders",
]

Document: TypeAlias = dict[str, Any]
_DIGITS = 6  # behind the point: microseconds, kiloflops; of a number below _SMALL, in all
_SMALL = 1e-3
#: The folders of an absolute path. A slash within words, as in an address or "GB/s", begins none.
_FOLDERS: Final = re.compile(
    r"(?<![\w/.:~])(?:~?/(?:[^\s/:'\"<>|]+/)+|[A-Za-z]:\\(?:[^\s\\:'\"<>|]+\\)+)"
)
#: Of the documents here; one without it is of the first version. Keys may be added within a major.
SCHEMA_VERSION: Final = "1.0"


def result_document(
    benchmark: str, conditions: Conditions, rows: Sequence["DataclassInstance"]
) -> Document:
    """The object that ``--json`` prints and ``--output`` writes."""
    return {
        "benchmark": benchmark,
        "schema_version": SCHEMA_VERSION,
        "conditions": plain(dataclasses.asdict(conditions)),
        "rows": [plain(dataclasses.asdict(row)) for row in rows],
    }


@contextlib.contextmanager
def saving(path: Path | None) -> Iterator[Callable[[Document], None]]:
    """Give a function that writes the document to ``path``; for None it does nothing.

    The place is claimed at once, so that nobody measures for an hour and then cannot write. The
    file appears when the block ends; if that raises, what was at ``path`` stays.

    Raises:
        InputError: ``path`` is a folder, or cannot be written.
    """
    if path is None:
        yield lambda document: None
        return
    with atomic_file(path) as temporary:

        def save(document: Document) -> None:
            text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

        yield save


def plain(value: Any) -> Any:
    """What JSON has; a number that is not finite becomes null."""
    match value:
        case Mapping():
            return {str(key): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
        case float():
            return _rounded(value) if math.isfinite(value) else None
        case PurePath():
            return value.name
        case str():
            return without_folders(value)
    return value


def without_folders(text: str) -> str:
    """A text in which absolute paths are names of files: results are published.

    What a library says when it fails may name the folders of a user.
    """
    for folder in _own_folders():
        text = text.replace(f"{folder}{os.sep}", "/_/")  # a folder like another
    return _FOLDERS.sub("", text)


def _own_folders() -> list[str]:
    """Those that tell most of who measures: a name with a space in it ends a path in a text."""
    found = []
    for asked in (Path.cwd, Path.home):
        with contextlib.suppress(OSError, RuntimeError):  # it was deleted; there is none
            found.append(str(asked()))
    return [folder for folder in found if " " in folder]


def _rounded(value: float) -> float:
    """Small numbers, such as an error of 1e-7, keep their leading digits."""
    if abs(value) < _SMALL:
        return float(f"{value:.{_DIGITS}g}")
    return round(value, _DIGITS)
