"""JSON into frozen dataclasses, strictly: nothing is guessed, ignored or converted.

The way back is :func:`dataclasses.asdict` and, where values may be NumPy's, paths or not finite,
:func:`plain_json`.
"""

import collections
import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal, NoReturn, TypeVar

from .errors import BundleFormatError, InputError

__all__ = ["parse_object", "plain_json", "typed"]

_T = TypeVar("_T")


def parse_object(text: str, source: str) -> dict[str, Any]:
    """Parse a JSON object; duplicate keys, NaN and infinities are refused.

    Args:
        text: the JSON.
        source: what messages call it, such as "bundle.json".

    Raises:
        BundleFormatError: it is something else.
    """
    try:
        document = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        json.dumps(document, ensure_ascii=False).encode()  # refuses half of a surrogate pair
    except RecursionError:
        raise BundleFormatError(f"{source} is nested too deeply.") from None
    except ValueError as error:
        raise BundleFormatError(f"{source} is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise BundleFormatError(f"{source}: expected an object, got {_described(document)}.")
    return document


def typed(value: object, kind: type[_T], *, hint: str = "") -> _T:
    """Build a dataclass from parsed JSON; every key must be there and of its declared type.

    Understood are dataclasses, str, int, float (a whole number may stand for it), bool, string
    enums, ``Literal``, unions, ``tuple[X, ...]``, ``tuple[X, Y]`` and ``dict[str, X]``.

    Args:
        value: parsed JSON.
        kind: a dataclass.
        hint: a sentence to add to the message about an unknown key.

    Raises:
        BundleFormatError: with the JSON path, what was got and what was expected.
    """
    result: _T = _Reader(hint).read(value, kind, "$")
    return result


def plain_json(value: Any) -> Any:
    """What JSON has of a value, for ``json.dumps`` with ``allow_nan=False``.

    NumPy's numbers become Python's, paths become text, and what is not finite becomes null.
    """
    match value:
        case Mapping():
            return {str(key): plain_json(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain_json(entry) for entry in value]
        case float():
            return float(value) if math.isfinite(value) else None
        case PurePath():
            return str(value)
        case None | bool() | int() | str():
            return value
    return plain_json(value.item())  # a NumPy scalar


@dataclasses.dataclass(frozen=True)
class _Reader:
    hint: str

    def read(self, value: object, kind: Any, path: str) -> Any:
        origin = typing.get_origin(kind)
        if dataclasses.is_dataclass(kind):
            result = self._dataclass(value, kind, path)
        elif origin is dict:
            result = self._dict(value, kind, path)
        elif origin is tuple:
            result = self._tuple(value, kind, path)
        elif origin is Literal:
            result = _choice(value, typing.get_args(kind), path)
        elif origin in {typing.Union, types.UnionType}:
            result = self._union(value, typing.get_args(kind), path)
        elif isinstance(kind, type) and issubclass(kind, enum.Enum) and issubclass(kind, str):
            result = kind(_choice(value, tuple(member.value for member in kind), path))
        else:
            result = _scalar(value, kind, path)
        return result

    def _dict(self, value: object, kind: Any, path: str) -> dict[str, Any]:
        entries = _expect(value, dict, "an object", path)
        _, item_kind = typing.get_args(kind)
        return {key: self.read(item, item_kind, f"{path}.{key}") for key, item in entries.items()}

    def _dataclass(self, value: object, kind: Any, path: str) -> Any:
        entries = _expect(value, dict, "an object", path)
        kinds = _kinds(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        for key in entries:
            if key not in names:
                raise BundleFormatError(
                    f"{path}: unknown key {key!r:.80}; expected {', '.join(names)}.{self.hint}"
                )
        missing = [name for name in names if name not in entries]
        if missing:
            raise BundleFormatError(f"{path}: missing {', '.join(missing)}.")
        values = {name: self.read(entries[name], kinds[name], f"{path}.{name}") for name in names}
        try:
            return kind(**values)
        except InputError as error:  # the class itself checks ranges
            raise BundleFormatError(f"{path}: {error}") from error

    def _tuple(self, value: object, kind: Any, path: str) -> tuple[Any, ...]:
        entries = _expect(value, list, "a list", path)
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            if all(type(item) is kinds[0] for item in entries):
                return tuple(entries)  # of numbers there may be many
            kinds = (kinds[0],) * len(entries)
        if len(kinds) != len(entries):
            raise BundleFormatError(
                f"{path}: expected a list of {len(kinds)} entries, got {len(entries)}."
            )
        return tuple(
            self.read(item, item_kind, f"{path}[{index}]")
            for index, (item, item_kind) in enumerate(zip(entries, kinds, strict=True))
        )

    def _union(self, value: object, kinds: tuple[Any, ...], path: str) -> Any:
        for kind in kinds:
            try:
                return self.read(value, kind, path)
            except BundleFormatError:
                continue
        names = " or ".join(kind.__name__ for kind in kinds)
        raise BundleFormatError(f"{path}: expected {names}, got {_described(value)}.")


@functools.cache
def _kinds(kind: type) -> dict[str, Any]:
    """Field → its type."""
    return typing.get_type_hints(kind)


def _scalar(value: object, kind: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    elif type(value) is kind:  # exactly: True is not a number here
        return value
    raise BundleFormatError(f"{path}: expected {kind.__name__}, got {_described(value)}.")


def _choice(value: object, choices: tuple[Any, ...], path: str) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise BundleFormatError(
            f"{path}: expected one of {', '.join(choices)}, got {_described(value)}."
        )
    return value


def _expect(value: object, kind: type[_T], name: str, path: str) -> _T:
    if not isinstance(value, kind):
        raise BundleFormatError(f"{path}: expected {name}, got {_described(value)}.")
    return value


def _described(value: object) -> str:
    return f"{type(value).__name__} {value!r:.80}"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return entries


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:80]} is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
