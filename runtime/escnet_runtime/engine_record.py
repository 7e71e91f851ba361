"""The record of compiled engines: what they were built from, and what they run on.

The specification of ``engines/<target>/engine.json``; which engines are used on a device is decided
in :mod:`escnet_runtime.engines`. Reading is strict, as for a bundle's description. An engine is
machine code for one library, GPU and set of shapes, so the record says all three.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from .errors import BundleFormatError
from .manifest import FileRef, check_relative_path, check_sha256
from .strict_json import parse_object, typed

__all__ = [
    "MOST_WORKSPACE",
    "RECORD_FILE",
    "AxisRange",
    "Compiler",
    "Engine",
    "EngineRecord",
    "Fingerprint",
    "Profile",
]

RECORD_FILE: Final = "engine.json"
_SCHEMA: Final = "1.1"
#: The format before it, which does not tell the workspace.
_OLDER: Final = "1.0"
_MAX_FILE_BYTES: Final = 2**40
#: Bytes that one layer's scratch may be allowed: far above every device's memory.
MOST_WORKSPACE: Final = 2**40
_MAX_AXIS: Final = 2**20
_LONGEST_TEXT: Final = 80

#: What compiles engines, and runs them.
Compiler = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisRange:
    """Sizes of a dynamic axis that an engine takes, and the one it is tuned for."""

    least: int
    tuned: int
    most: int


#: Dynamic axis → its sizes. A graph has one profile for each chunk its engine is tuned for.
Profile = dict[str, AxisRange]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """What an engine depends on besides its graph.

    Attributes:
        backend: the library that compiled it.
        version: of that library, all of it: engines are not portable between builds of one.
        targets: compute capabilities it has code for, such as "sm_86".
        driver: CUDA version of the driver it was built on, such as "13.0"; None if it was built
            without a GPU. A newer driver runs it as well.
        os: system and processor, such as "linux-x86_64".
    """

    backend: Compiler
    version: str
    targets: tuple[str, ...]
    driver: str | None
    os: str

    def differences(self, here: "Fingerprint") -> list[str]:
        """Why engines with this fingerprint do not run ``here``, a phrase for each reason.

        Args:
            here: the library and the device; its ``targets`` is the GPU alone, empty without one.
        """
        found = [
            f"{name} is {got}, here it is {want}"
            for name, got, want in (
                ("backend", self.backend, here.backend),
                ("version", self.version, here.version),
                ("os", self.os, here.os),
            )
            if got != want
        ]
        if not set(here.targets) & set(self.targets):
            gpu = ", ".join(here.targets) or "no NVIDIA GPU"
            found.append(f"compute capability is {', '.join(self.targets)}, here it is {gpu}")
        if self.driver is not None and _numbers(here.driver) < _numbers(self.driver):
            older = f"CUDA {here.driver}" if here.driver else "no driver"
            found.append(f"driver is CUDA {self.driver}, here it is the older {older}")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine(FileRef):
    """One compiled graph; its file is relative to the record's folder.

    Attributes:
        onnx_sha256: of the graph it was compiled from.
        profiles: shapes it takes.
        scratch_bytes: memory its activations need while it runs; None if the compiler did not say.
        seconds: that compiling took.
    """

    onnx_sha256: str
    profiles: tuple[Profile, ...]
    scratch_bytes: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRecord:
    """The whole of ``engine.json``.

    Attributes:
        fingerprint: of all engines.
        engines: by graph.
        workspace: bytes that one layer's scratch could take at most when they were built; None
            without a limit, and in records of format 1.0, which do not tell.
    """

    schema_version: str = _SCHEMA
    fingerprint: Fingerprint
    engines: dict[str, Engine]
    workspace: int | None = None

    @classmethod
    def from_json(cls, text: str) -> "EngineRecord":
        """Read and check an ``engine.json``.

        Raises:
            BundleFormatError: it is malformed, implausible, unsafe or of another format version.
        """
        document = parse_object(text, RECORD_FILE)
        if document.get("schema_version") == _OLDER:
            document = {**document, "schema_version": _SCHEMA, "workspace": None}
        if document.get("schema_version") != _SCHEMA:
            raise BundleFormatError(
                f"{RECORD_FILE} has format {document.get('schema_version')!r:.80}, expected "
                f"{_SCHEMA!r}"
            )
        record = typed(document, cls)
        if record.workspace is not None and not 1 <= record.workspace <= MOST_WORKSPACE:
            raise BundleFormatError(
                f"$.workspace: {record.workspace!r:.40} bytes are not plausible."
            )
        _check_fingerprint(record.fingerprint)
        for name, engine in record.engines.items():
            _check_engine(name, engine)
        return record

    def to_json(self) -> str:
        """Write ``engine.json``.

        Raises:
            BundleFormatError: `from_json` would refuse it.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        EngineRecord.from_json(text)
        return text

    @property
    def scratch_bytes(self) -> int | None:
        """What all engines together need: they run one after the other and share the memory."""
        sizes = [engine.scratch_bytes for engine in self.engines.values()]
        known = [size for size in sizes if size is not None]
        return max(known, default=0) if len(known) == len(sizes) else None

    def misfits(self, graphs: Mapping[str, str], *, chunk: int) -> list[str]:
        """Why these engines are not those of ``graphs``, a phrase for each reason.

        Args:
            graphs: name → sha256 of the ONNX as the bundle has it.
            chunk: categories to be run at a time.
        """
        found = []
        for name, sha256 in graphs.items():
            engine = self.engines.get(name)
            if engine is None:
                found.append(f"there is no engine of the graph {name!r}")
            elif engine.onnx_sha256 != sha256:
                found.append(
                    f"ONNX of {name!r} had sha256 {engine.onnx_sha256[:12]}…, here it has "
                    f"{sha256[:12]}…"
                )
            else:
                most = max((p["n"].most for p in engine.profiles if "n" in p), default=chunk)
                if most < chunk:
                    found.append(
                        f"profiles of {name!r} end at {most} categories at a time, {chunk} are "
                        "wanted"
                    )
        return found


def _check_fingerprint(found: Fingerprint) -> None:
    """Refuse texts that are no names: parts of them are read as numbers."""
    for text in (found.version, found.driver or "", found.os, *found.targets):
        if len(text) > _LONGEST_TEXT:
            raise BundleFormatError(
                f"$.fingerprint: expected texts of at most {_LONGEST_TEXT} characters, got "
                f"{text!r:.40}… of {len(text):,}."
            )


def _check_engine(name: str, engine: Engine) -> None:
    where = f"$.engines.{name:.80}"
    if not name.isidentifier():
        raise BundleFormatError(f"{where}: the name is not an identifier.")
    check_relative_path(engine.file)
    for digest in (engine.sha256, engine.onnx_sha256):
        check_sha256(digest, where)
    for size in (engine.bytes, engine.scratch_bytes or 0):
        if not 0 <= size <= _MAX_FILE_BYTES:
            raise BundleFormatError(f"{where}: {size!r:.40} bytes are not plausible.")
    for profile in engine.profiles:
        for axis, sizes in profile.items():
            if not 1 <= sizes.least <= sizes.tuned <= sizes.most <= _MAX_AXIS:
                raise BundleFormatError(
                    f"{where}: the axis {axis!r:.80} goes from {sizes.least!r:.40} over "
                    f"{sizes.tuned!r:.40} to {sizes.most!r:.40}, expected rising sizes from 1 to "
                    f"{_MAX_AXIS:,}."
                )


def _numbers(version: str | None) -> tuple[int, ...]:
    """(13, 0) of "13.0"."""
    return tuple(int(part) for part in re.findall(r"\d+", version or ""))
