"""The chunk that was measured to be the fastest on this machine, from its record in a bundle.

On a CPU a chunk changes the time and the memory. Which one is the fastest depends on the
processor's caches and cores, so ``escnet-build BUNDLE --backend onnxruntime`` measures it and
writes ``engines/chunks-onnxruntime.json``. A Segmenter uses the record if it fits this machine and
these graphs; else it says in one line what differs, and uses the bundle's own chunk.
"""

import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .backends import library_version
from .bundle import Bundle
from .chunk_record import CPU_BACKENDS, ChunkRecord, CpuBackend, Machine
from .engines import ENGINES_FOLDER
from .errors import BundleError, BundleFormatError
from .groups import whole_groups
from .order import by_chunk

__all__ = [
    "ChunkState",
    "chunk_file",
    "measure_command",
    "measured_chunk",
    "measured_graphs",
    "read_chunks",
    "survey_chunks",
]

_LOG: Final = logging.getLogger("escnet_runtime")
_MAX_RECORD_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkState:
    """A record in a bundle, and whether it is used here.

    Attributes:
        file: relative to the bundle.
        backend: what it is for.
        state: "fits", "misfit" (measured elsewhere, or on other graphs) or "damaged".
        reasons: what is wrong, a phrase for each.
        chunk: categories at a time, in whole groups, if it fits.
        command: what measures anew.
    """

    file: str
    backend: CpuBackend
    state: Literal["fits", "misfit", "damaged"]
    reasons: tuple[str, ...]
    chunk: int | None
    command: str


def chunk_file(backend: CpuBackend) -> str:
    """Where a bundle has the record of a backend, relative to its root."""
    return f"{ENGINES_FOLDER}/chunks-{backend}.json"


def measure_command(root: Path, backend: CpuBackend) -> str:
    """The command that measures on the machine that is here, to be copied into a shell."""
    return f"escnet-build {shlex.quote(str(root))} --backend {backend}"


def measured_graphs(bundle: Bundle) -> dict[str, str]:
    """Name → sha256 of every graph of ``bundle`` that runs once for each chunk of categories."""
    return {name: stage.sha256 for name, stage in bundle.manifest.stages.items() if by_chunk(name)}


def read_chunks(bundle: Bundle, backend: CpuBackend) -> ChunkRecord:
    """Read the record of a backend, whatever machine it is of.

    Raises:
        BundleFormatError: it is malformed or unsafe.
        BundleIntegrityError: there is none.
    """
    name = chunk_file(backend)
    record = ChunkRecord.from_json(bundle.text(name, most=_MAX_RECORD_BYTES), name)
    if record.machine.backend != backend:
        raise BundleFormatError(
            f"$.machine.backend: {record.machine.backend}, expected {backend} in {name}."
        )
    return record


def measured_chunk(bundle: Bundle, backend: str) -> int | None:
    """Categories at a time that were measured to be the fastest here; None if that is not known.

    A record that does not fit is logged with the field that differs, a damaged one warned of.

    Args:
        bundle: opened.
        backend: that runs its graphs; one of another name has no record.
    """
    found = next((one for one in CPU_BACKENDS if one == backend), None)
    state = None if found is None else _survey(bundle, found)
    if state is None:
        return None
    if state.state == "fits":
        _LOG.debug("chunks of %s categories, as measured (%s)", state.chunk, state.file)
        return state.chunk
    more = f" (and {len(state.reasons) - 1} more)" if len(state.reasons) > 1 else ""
    _LOG.log(
        logging.WARNING if state.state == "damaged" else logging.INFO,
        "%s %s: %s%s. The bundle's own chunk is used; measure anew: %s",
        state.file,
        "is damaged" if state.state == "damaged" else "does not fit",
        state.reasons[0].rstrip("."),
        more,
        state.command,
    )
    return None


def survey_chunks(bundle: Bundle) -> list[ChunkState]:
    """Look at every record of ``bundle``."""
    states = (_survey(bundle, backend) for backend in CPU_BACKENDS)
    return [state for state in states if state is not None]


def _survey(bundle: Bundle, backend: CpuBackend) -> ChunkState | None:
    """The state of a backend's record of measured chunks; None if there is none."""
    name = chunk_file(backend)
    if not os.path.lexists(bundle.root / name):
        return None
    chunk: int | None = None
    state: Literal["fits", "misfit", "damaged"] = "damaged"
    try:
        record = read_chunks(bundle, backend)
        reasons = _unfit(bundle, record)
        state = "misfit" if reasons else "fits"
        if not reasons:
            chunk = whole_groups(record.chunk, bundle.manifest.constants.group)
    except BundleError as error:
        reasons = [str(error)]
    return ChunkState(
        file=name,
        backend=backend,
        state=state,
        reasons=tuple(reasons),
        chunk=chunk,
        command=measure_command(bundle.root, backend),
    )


def _unfit(bundle: Bundle, record: ChunkRecord) -> list[str]:
    backend = record.machine.backend
    version = library_version(backend)
    if version is None:
        return [f"{backend} is not installed here"]
    differences = record.machine.differences(Machine.here(backend, version))
    return differences + record.misfits(measured_graphs(bundle))
