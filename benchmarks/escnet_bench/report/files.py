"""Finds and reads result files. They may come from strangers: nothing in them is trusted."""

import dataclasses
import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from escnet_runtime.errors import BundleFormatError, InputError
from escnet_runtime.strict_json import parse_object

from ..results import SCHEMA_VERSION
from .clocks import Clocks, throttling
from .facts import Machine, Result
from .kinds import FILL
from .opened import Opened
from .schema import BundleOf, ClocksOf, ConditionsOf, GpuClocksOf, taken

__all__ = ["find_results", "read_result"]

_CLOCKS: Final = ("clocks_before", "clocks_after")
_MOST_BYTES: Final = 32 * 2**20
_MOST_ROWS: Final = 20_000
_NAME: Final = 400  # most characters of a name in a message
_MAJOR_DIGITS: Final = 9  # of a version; int() refuses thousands
_EVAL: Final = "eval"  # escnet-eval's object has no "benchmark"


def find_results(sources: Sequence[str]) -> list[tuple[str, Path]]:
    """The files that ``sources`` stand for, each with its name for people, without folders.

    Args:
        sources: files, folders (every ``*.json`` in them, however deep) and patterns.

    Raises:
        InputError: one of them leads to no file.
    """
    found: dict[Path, str] = {}
    for source in sources:
        wrong = "no such file, folder or match"
        try:
            files = _meant(source)
            if Path(source).is_dir():
                wrong = "no *.json in it"
        except OSError as error:  # too long a name, such as a whole file's content
            files, wrong = {}, str(error.strerror)
        if not files:
            said = source if len(source) <= _NAME else f"{source[:_NAME]}…"
            raise InputError(f"{said}: {wrong}; expected result files of escnet-bench")
        for one, name in files.items():
            found.setdefault(one.resolve(), name)
    return _told_apart([(name, path) for path, name in found.items()])


def _meant(source: str) -> dict[Path, str]:
    """The files that a file, a folder or a pattern stands for, each with its name."""
    path = Path(source)
    if path.is_dir():
        # Hidden files belong to a measurement that is being written, or to an editor.
        there = [one for one in sorted(path.rglob("*.json")) if not one.name.startswith(".")]
        return {one: one.relative_to(path).as_posix() for one in there if not one.is_dir()}
    if path.is_file():
        return {path: path.name}
    matches = sorted(Path(one) for one in glob.glob(source, recursive=True))
    return {one: one.name for one in matches if one.is_file()}


def _told_apart(files: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Make names unique by adding the folder's name and, if that is not enough, a number."""
    names = [name for name, _ in files]
    twice = {name for name in names if names.count(name) > 1}
    taken_names: set[str] = set(names) - twice
    apart = []
    for given, path in files:
        name = f"{path.parent.name}/{path.name}" if given in twice else given
        number = 2
        while given in twice and name in taken_names:
            name = f"{path.parent.name}/{path.name} ({number})"
            number += 1
        taken_names.add(name)
        apart.append((name, path))
    return apart


def read_result(path: Path, name: str | None = None) -> Result:
    """Read one result file.

    Args:
        path: the file.
        name: what to call it; by default its name.

    Raises:
        InputError: it is no result file, is empty, damaged or of a newer schema; the message names
            it, what was got and what was expected.
    """
    name = name or path.name
    document = _document(path, name)
    kind = _kind(document, name)
    _check_version(document, name)
    given = document.get("conditions")
    conditions = taken(given, ConditionsOf, f"{name}: conditions")
    assert isinstance(given, Mapping)
    bundle = given.get("bundle")
    clocks = [_clocks(given.get(key), f"{name}: conditions.{key}") for key in _CLOCKS]
    opened = Opened(
        file=name,
        document=document,
        rows=[] if kind == _EVAL else _rows(document, name),
        machine=_machine(conditions),
        bundle=None if bundle is None else taken(bundle, BundleOf, f"{name}: conditions.bundle"),
    )
    fill = FILL.get(kind)
    result = Result(
        file=name,
        benchmark=kind,
        machine=opened.machine,
        conditions={
            **dataclasses.asdict(conditions),
            **{key: str(one) for key, one in zip(_CLOCKS, clocks, strict=True) if one is not None},
        },
        remarks=(*_remarks(document, conditions), *throttling(*clocks)),
        notes=tuple(_notes(document)),
    )
    if fill is None:
        return dataclasses.replace(
            result, unused=f"results of {kind!r} are not shown here; known: {_listed(FILL)}"
        )
    return fill(opened, result)


def _clocks(given: object, where: str) -> Clocks | None:
    if given is None:
        return None
    clocks = taken(given, ClocksOf, where)
    assert isinstance(given, Mapping)
    gpus = given.get("gpus") or []
    if not isinstance(gpus, list):
        raise InputError(f"{where}.gpus: got {type(gpus).__name__}, expected a list")
    read = [taken(gpu, GpuClocksOf, f"{where}.gpus[{at}]") for at, gpu in enumerate(gpus)]
    return Clocks(processor=clocks, gpus=tuple(read))


def _document(path: Path, name: str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if not size:
            raise InputError(f"{name} is empty; expected a result file of escnet-bench")
        if size > _MOST_BYTES:
            raise InputError(
                f"{name} has {size:,} bytes; expected a result file, at most {_MOST_BYTES:,}"
            )
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no text in UTF-8 ({error}); expected JSON") from error
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    try:
        return parse_object(text, name)
    except BundleFormatError as error:
        raise InputError(f"{error} Expected a result file of escnet-bench.") from error


def _kind(document: Mapping[str, Any], name: str) -> str:
    if "benchmark" not in document and {"miou", "kind", "per_class"} <= document.keys():
        return _EVAL
    kind = document.get("benchmark")
    if not isinstance(kind, str) or "conditions" not in document:
        keys = ", ".join(json.dumps(key)[:40] for key in list(document)[:6]) or "none"
        raise InputError(
            f'{name} is no result file: got an object with the keys {keys}; expected "benchmark" '
            '(a text), "conditions" and "rows", as escnet-bench --output writes them'
        )
    return kind


def _check_version(document: Mapping[str, Any], name: str) -> None:
    version = document.get("schema_version", "1.0")
    known = int(SCHEMA_VERSION.partition(".")[0])
    major = version.partition(".")[0] if isinstance(version, str) else ""
    if not (major.isascii() and major.isdigit() and len(major) <= _MAJOR_DIGITS):
        raise InputError(
            f"{name}: schema_version is {json.dumps(version)[:40]}, expected a text such as "
            f'"{SCHEMA_VERSION}"'
        )
    if int(major) != known:
        todo = "install a newer escnet-bench" if int(major) > known else "measure again with it"
        raise InputError(
            f"{name} has schema {version[:20]}, this escnet-bench reads {known}.x; {todo}"
        )


def _rows(document: Mapping[str, Any], name: str) -> list[Any]:
    rows = document.get("rows")
    if not isinstance(rows, list):
        got = "nothing" if rows is None else type(rows).__name__
        raise InputError(f"{name}: rows: got {got}, expected a list")
    if not rows and not document.get("left_out"):
        raise InputError(f"{name}: rows: got an empty list, expected at least one row")
    if len(rows) > _MOST_ROWS:
        raise InputError(f"{name}: rows: got {len(rows):,}, expected at most {_MOST_ROWS:,}")
    return rows


def _machine(conditions: ConditionsOf) -> Machine:
    # Results of a machine's processor are not listed under its GPU.
    gpus = () if conditions.device == "cpu" else conditions.gpus or ()
    return Machine(
        cpu=conditions.cpu,
        cores=conditions.cores if conditions.usable_cores is None else conditions.usable_cores,
        gpus=tuple(gpu.partition(",")[0].strip() for gpu in gpus),
        day=conditions.date[:10],
    )


def _remarks(document: Mapping[str, Any], conditions: ConditionsOf) -> Iterable[str]:
    if document.get("finished") is False:
        yield "the run did not finish"
    if conditions.changed:
        yield "measured with a source tree that differs from its commit"
    load, cores = conditions.load_before, conditions.usable_cores
    if load and cores and load[0] > 0.5 * cores:
        yield f"the machine was busy before (load {load[0]:g} on {cores} cores)"


def _notes(document: Mapping[str, Any]) -> Iterable[str]:
    for key in ("note", "errors"):
        value = document.get(key)
        texts = value if isinstance(value, list) else [value]
        yield from (f"{text:.1000}" for text in texts if isinstance(text, str) and text)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
