"""Engines of a bundle: the record beside them, and whether they fit the device that is here.

``escnet-build`` compiles the graphs into ``engines/<target>/`` and describes them there in
``engine.json``. An engine is machine code for one library, GPU and set of shapes: what was built
for another one is refused with the field that differs and the command that rebuilds it, and never
rebuilt in the middle of inference.
"""

import dataclasses
import json
import logging
import platform
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .bundle import Bundle, sha256_file
from .errors import BundleError, BundleFormatError, BundleIntegrityError, EngineMismatchError
from .groups import whole_groups
from .manifest import FileRef, check_relative_path
from .nvidia import find_gpu
from .strict_json import parse_object, typed

__all__ = [
    "ENGINES_FOLDER",
    "MOST_WORKSPACE",
    "RECORD_FILE",
    "AxisRange",
    "Compiler",
    "Engine",
    "EngineFolder",
    "EngineRecord",
    "Fingerprint",
    "Profile",
    "engine_folder",
    "find_engines",
    "fingerprint_here",
    "installed_version",
    "read_engines",
    "rebuild_command",
    "survey_engines",
]

ENGINES_FOLDER: Final = "engines"
RECORD_FILE: Final = "engine.json"
_LOG: Final = logging.getLogger("escnet_runtime")
_SCHEMA: Final = "1.1"
#: The format before it, which does not tell the workspace.
_OLDER: Final = "1.0"
_MAX_RECORD_BYTES: Final = 4 * 2**20
_MAX_FILE_BYTES: Final = 2**40
#: Bytes that one layer's scratch may be allowed: far above every device's memory.
MOST_WORKSPACE: Final = 2**40
_MAX_AXIS: Final = 2**20
_LONGEST_TEXT: Final = 80

Compiler = Literal["tensorrt", "tensorrt-rtx"]

#: Distributions that bring the bindings, the likeliest first.
_LIBRARIES: Final[dict[Compiler, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
}


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
        """What keeps engines with this fingerprint from running ``here``, a phrase for each.

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
        if self.driver is not None and _release(here.driver) < _release(self.driver):
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
        """What keeps these engines from standing for ``graphs``, a phrase for each.

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


def fingerprint_here(
    backend: Compiler, version: str, *, capability: tuple[int, int] | None = None
) -> Fingerprint:
    """What engines must fit here: the installed library, the GPU, its driver.

    Args:
        backend: the library that runs them.
        version: of that library.
        capability: of the GPU that is meant; by default that of the first visible one.
    """
    gpu = find_gpu()
    targets = () if gpu is None else (gpu.target,)
    if capability is not None:
        targets = ("sm_{}{}".format(*capability),)
    return Fingerprint(
        backend=backend,
        version=version,
        targets=targets,
        driver=None if gpu is None else gpu.driver,
        os=f"{platform.system()}-{platform.machine()}".lower(),
    )


def engine_folder(backend: Compiler, targets: Iterable[str]) -> str:
    """Name of the folder in ``engines/`` for engines of a backend and of some GPUs."""
    return "-".join([backend, *targets])


def find_engines(
    bundle: Bundle, here: Fingerprint, *, chunk: int | None = None
) -> tuple[EngineRecord, dict[str, Path]]:
    """The engines of ``bundle`` that run here: their record, and the file of each graph.

    Args:
        bundle: an opened bundle.
        here: see :meth:`Fingerprint.differences`.
        chunk: categories to be run at a time; the bundle's own by default.

    Of several folders, the first one that fits and is whole is taken; damaged ones before it are
    warned of.

    Raises:
        EngineMismatchError: there are none, or none fits; says which field differs and the command
            that rebuilds them.
        BundleFormatError: a record is malformed or unsafe, and no other one is sound.
        BundleIntegrityError: an engine is missing or is not the one that was written, and no other
            folder fits.
    """
    constants = bundle.manifest.constants
    wanted = whole_groups(chunk or constants.chunk, constants.group)
    graphs = {name: stage.sha256 for name, stage in bundle.manifest.stages.items()}
    command = rebuild_command(bundle.root, here.backend, chunk)
    damage: list[BundleError] = []
    reasons = []
    for folder in _folders(bundle, here.backend):
        where = f"{ENGINES_FOLDER}/{folder}"
        try:
            record = read_engines(bundle, folder)
            found = record.fingerprint.differences(here) + record.misfits(graphs, chunk=wanted)
            if not found:
                files = _checked_files(bundle, folder, record)
                for error in damage:
                    _LOG.warning("%s Another folder of engines is used.", error)
                return record, files
            reasons.append(f"{where}: {found[0]}" + _further(len(found) - 1))
        except BundleError as error:
            damage.append(type(error)(f"The engines {bundle.root / where} are damaged: {error}"))
    if damage and not reasons:
        raise type(damage[0])(f"{damage[0]} Rebuild them: {command}") from damage[0]
    if not reasons:
        raise EngineMismatchError(
            f"The bundle {bundle.root} has no engines for {here.backend}. Build them: {command}"
        )
    listed = "; ".join([*reasons, *map(str, damage)])
    raise EngineMismatchError(
        f"The engines of the bundle {bundle.root} do not fit: {listed}. Rebuild them: {command}"
    )


def read_engines(bundle: Bundle, folder: str) -> EngineRecord:
    """Read the record in ``engines/<folder>`` of a bundle, whatever it was built for.

    Raises:
        BundleFormatError: the record is malformed or unsafe.
        BundleIntegrityError: there is none.
    """
    name = f"{ENGINES_FOLDER}/{folder}/{RECORD_FILE}"
    text = bundle.text(name, most=_MAX_RECORD_BYTES)
    try:
        return EngineRecord.from_json(text)
    except BundleFormatError as error:
        raise BundleFormatError(
            f"{ENGINES_FOLDER}/{folder} of the bundle {bundle.root}: {error} Remove that folder; "
            "escnet-build makes it anew."
        ) from error


def rebuild_command(root: Path, backend: Compiler, chunk: int | None = None) -> str:
    """The command that builds engines for the device that is here, to be copied into a shell."""
    command = f"escnet-build {shlex.quote(str(root))} --backend {backend}"
    return command if chunk is None else f"{command} --chunk {chunk}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFolder:
    """A folder of engines in a bundle, and whether they run here.

    Attributes:
        folder: relative to the bundle.
        backend: the library they are for; None if the record does not say.
        state: "fits", "misfit" (made for something else) or "damaged".
        reasons: what is wrong, a phrase for each.
        outdated: those of them that do not depend on which GPU is here, or whether one is: another
            graph or chunk in the bundle, another version of the library that is installed here.
        command: what makes engines for this device; without a GPU, what makes these anew.
    """

    folder: str
    backend: Compiler | None
    state: Literal["fits", "misfit", "damaged"]
    reasons: tuple[str, ...]
    outdated: tuple[str, ...] = ()
    command: str | None


def survey_engines(bundle: Bundle) -> list[EngineFolder]:
    """Look at every folder of engines of ``bundle``; nothing is loaded.

    Raises:
        BundleFormatError: the place of engines leads out of the bundle.
    """
    names = [name for name in bundle.folders(ENGINES_FOLDER) if not name.startswith(".")]
    return [_survey(bundle, name) for name in names]


def _survey(bundle: Bundle, name: str) -> EngineFolder:
    backend = next((one for one in _LIBRARIES if _is_folder_of(one, name)), None)
    state: Literal["fits", "misfit", "damaged"] = "damaged"
    outdated: list[str] = []
    try:
        record = read_engines(bundle, name)
        backend = record.fingerprint.backend
        _checked_files(bundle, name, record)
        reasons, outdated = _unfit(bundle, record)
        state = "misfit" if reasons else "fits"
    except BundleError as error:
        reasons = [str(error)]
    return EngineFolder(
        folder=f"{ENGINES_FOLDER}/{name}",
        backend=backend,
        state=state,
        reasons=tuple(reasons),
        outdated=tuple(outdated),
        command=None if backend is None else _command(bundle, backend, name, state, outdated),
    )


def _command(
    bundle: Bundle, backend: Compiler, folder: str, state: str, outdated: list[str]
) -> str:
    """What makes engines for this device or, where there is no GPU, this very folder anew."""
    command = rebuild_command(bundle.root, backend)
    if backend == "tensorrt-rtx" and find_gpu() is None and (state == "damaged" or outdated):
        return f"{command} --target {','.join(re.findall(r'sm_[0-9]+', folder))}"
    return command


def _unfit(bundle: Bundle, record: EngineRecord) -> tuple[list[str], list[str]]:
    """What keeps engines from running here, a phrase for each; and what of it is outdated."""
    fingerprint, constants = record.fingerprint, bundle.manifest.constants
    version = installed_version(fingerprint.backend)
    missing = [] if version else [f"{fingerprint.backend} is not installed here"]
    here = fingerprint_here(fingerprint.backend, version or fingerprint.version)
    graphs = {name: stage.sha256 for name, stage in bundle.manifest.stages.items()}
    chunk = whole_groups(constants.chunk, constants.group)
    misfits = record.misfits(graphs, chunk=chunk)
    outdated = list(misfits)
    if version and fingerprint.os == here.os:
        # As far as can be told without a GPU: the library, which is the same for all of them.
        same = dataclasses.replace(here, targets=fingerprint.targets, driver=fingerprint.driver)
        outdated += fingerprint.differences(same)
    return missing + fingerprint.differences(here) + misfits, outdated


def installed_version(backend: Compiler) -> str | None:
    """Of the library that runs a backend's engines, without loading it; None if there is none."""
    import importlib.metadata  # 40 ms, which no start on a CPU waits for

    for name in _LIBRARIES[backend]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _folders(bundle: Bundle, backend: Compiler) -> Iterator[str]:
    """Names of the folders with engines of a backend, in order."""
    for name in bundle.folders(ENGINES_FOLDER):
        if _is_folder_of(backend, name):
            yield name


def _is_folder_of(backend: Compiler, name: str) -> bool:
    return re.fullmatch(rf"{backend}(-sm_\d+)+", name) is not None


def _checked_files(bundle: Bundle, folder: str, record: EngineRecord) -> dict[str, Path]:
    """Path of each engine, after its size and digest were compared with the record."""
    files = {}
    for name, engine in record.engines.items():
        command = rebuild_command(bundle.root, record.fingerprint.backend)
        try:
            path = bundle.file(f"{ENGINES_FOLDER}/{folder}/{engine.file}")
        except BundleIntegrityError as error:
            raise BundleIntegrityError(f"{error} Rebuild it: {command}") from error
        size = path.stat().st_size
        if size != engine.bytes or sha256_file(path) != engine.sha256:
            detail = f"has {size:,} bytes, expected {engine.bytes:,}"
            detail = "has another sha256 than its record" if size == engine.bytes else detail
            raise BundleIntegrityError(
                f"the engine {engine.file} is not as it was written: it {detail}."
            )
        files[name] = path
    return files


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
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BundleFormatError(
                f"{where}: expected a sha256 of 64 hexadecimal digits, got {digest!r:.80}."
            )
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


def _release(version: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version or ""))


def _further(count: int) -> str:
    return f" (and {count} more)" if count else ""
