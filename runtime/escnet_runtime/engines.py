"""Engines of a bundle: which there are, and whether they fit the device that is here.

``escnet-build`` compiles the graphs into ``engines/<target>/`` and describes them there in
``engine.json`` (:mod:`escnet_runtime.engine_record`). What was built for another library, GPU or
set of shapes is refused with the field that differs and the command that rebuilds it, and never
rebuilt in the middle of inference.
"""

import dataclasses
import logging
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .bundle import Bundle, sha256_file
from .engine_record import RECORD_FILE, Compiler, EngineRecord, Fingerprint
from .errors import BundleError, BundleFormatError, BundleIntegrityError, EngineMismatchError
from .groups import whole_groups
from .nvidia import find_gpu
from .processor import system_name

__all__ = [
    "ENGINES_FOLDER",
    "EngineFolder",
    "engine_folder",
    "find_engines",
    "fingerprint_here",
    "installed_version",
    "read_engines",
    "rebuild_command",
    "survey_engines",
]

ENGINES_FOLDER: Final = "engines"
_LOG: Final = logging.getLogger("escnet_runtime")
_MAX_RECORD_BYTES: Final = 4 * 2**20

#: Distributions that bring the bindings, the likeliest first.
_LIBRARIES: Final[dict[Compiler, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
}


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
        os=system_name(),
    )


def engine_folder(backend: Compiler, targets: Iterable[str]) -> str:
    """Name of the folder in ``engines/`` for engines of a backend and of some GPUs."""
    return "-".join([backend, *targets])


def find_engines(
    bundle: Bundle, here: Fingerprint, *, chunk: int | None = None
) -> tuple[EngineRecord, dict[str, Path]]:
    """The engines of ``bundle`` that run here: their record, and the file of each graph.

    Of several folders, the first one that fits and is whole is taken; damaged ones before it are
    warned of.

    Args:
        bundle: an opened bundle.
        here: see :meth:`Fingerprint.differences`.
        chunk: categories to be run at a time; the bundle's own by default.

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
        outdated: the reasons among them that no GPU would mend: another graph or chunk in the
            bundle, or another version of the library that is installed here.
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
    """The command that builds engines for this device or, without a GPU, rebuilds this folder."""
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
    """Version of the library that runs a backend's engines, not imported; None if missing."""
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


def _further(count: int) -> str:
    return f" (and {count} more)" if count else ""
