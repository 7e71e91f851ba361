"""Result files: a benchmark's results and their conditions, as one JSON object."""

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
_DIGITS = 6  # decimals (microseconds, kiloflops); below _SMALL, significant digits
_SMALL = 1e-3
#: The folders of an absolute path. A slash within words, as in an address or "GB/s", begins none.
_FOLDERS: Final = re.compile(
    r"(?<![\w/.:~])(?:~?/(?:[^\s/:'\"<>|]+/)+|[A-Za-z]:\\(?:[^\s\\:'\"<>|]+\\)+)"
)
#: Version of the documents; one without a version is of the first. A minor version may add keys.
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
    """Give a function that writes the document to ``path``; if that is None, it does nothing.

    ``path`` is checked at once, so that nobody measures for an hour and then cannot write. The file
    appears when the block ends; if the block raises, what was at ``path`` stays.

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
    """A value in JSON's types; a number that is not finite becomes null."""
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
    """A text with absolute paths cut to file names, because results are published.

    Error messages of libraries may name a user's folders.
    """
    for folder in _own_folders():
        text = text.replace(f"{folder}{os.sep}", "/_/")  # has no spaces, which would end a path
    return _FOLDERS.sub("", text)


def _own_folders() -> list[str]:
    """The user's own folders, replaced as a whole: a space in one would seem to end the path."""
    found = []
    for asked in (Path.cwd, Path.home):
        with contextlib.suppress(OSError, RuntimeError):  # deleted, or there is no home folder
            found.append(str(asked()))
    return [folder for folder in found if " " in folder]


def _rounded(value: float) -> float:
    """Round for JSON; small numbers, such as an error of 1e-7, keep their leading digits."""
    if abs(value) < _SMALL:
        return float(f"{value:.{_DIGITS}g}")
    return round(value, _DIGITS)
