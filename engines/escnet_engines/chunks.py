"""Finds the fastest chunk on this machine by timing each graph, and records it in the bundle."""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from escnet_runtime.atomic import atomic_file
from escnet_runtime.backends import library_version
from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import ChunkRecord, CpuBackend, KindTimes, Machine, Measuring
from escnet_runtime.contract import require_contract
from escnet_runtime.errors import BackendError, BundleError, BundleFormatError, InputError
from escnet_runtime.measured_chunks import chunk_file, measured_graphs, read_chunks
from escnet_runtime.processor import load_averages

from .chunk_plan import ChunkSizes
from .chunk_runs import BlockRuns, Run, kinds_of, timed_in_turns
from .lock import only_build

__all__ = ["NOISE", "ROUNDS", "ChunkReport", "fastest_chunk", "measure_chunks"]

_LOG: Final = logging.getLogger("escnet_engines")
#: Timed runs of each chunk.
ROUNDS: Final = 5
#: A smaller chunk needs less memory, so it is preferred if at most this share slower.
NOISE: Final = 0.03
#: Warn if runs at one chunk differ by more than this share of their time.
_RESTLESS: Final = 0.25

#: Called with bundle, backend and number of categories; gives the runs to time.
Opener = Callable[[Bundle, CpuBackend, int], AbstractContextManager[Run]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkReport:
    """The result of a measurement.

    Attributes:
        file: path of the record, relative to the bundle.
        record: its content.
        replaced: date of the record that was replaced; "" if it was damaged, None if there was
            none.
        left_out: chunks that were not measured because they would not fit the memory.
    """

    file: str
    record: ChunkRecord
    replaced: str | None
    left_out: tuple[int, ...]


def fastest_chunk(seconds: Mapping[int, float], noise: float = NOISE) -> int:
    """The smallest chunk whose time is within ``noise`` of the fastest.

    Args:
        seconds: chunk → time.
        noise: a share of the fastest time.
    """
    best = min(seconds.values())
    return min(chunk for chunk, spent in seconds.items() if spent <= best * (1 + noise))


def measure_chunks(
    bundle: Bundle,
    backend: CpuBackend,
    sizes: ChunkSizes,
    *,
    rounds: int = ROUNDS,
    step: Callable[[str], object] = lambda _: None,
    runs: Opener = BlockRuns,
) -> ChunkReport:
    """Time every kind of graph of ``bundle`` at every chunk, and record the best chunk.

    One chunk is chosen for all graphs: the one with the least time for a whole image, in which
    every graph runs. An older record is replaced; if anything fails, it stays. Another measurement
    or build of the same bundle waits until this one has ended.

    Args:
        bundle: opened.
        backend: the backend to measure.
        sizes: what to measure, from :func:`chunk_sizes`.
        rounds: timed runs of each chunk.
        step: called before each run with a text that names it.
        runs: opens the runs to time.

    Raises:
        InputError: ``rounds`` is out of range, or the bundle cannot be used or written to.
        BackendError: the backend is not installed, or a graph failed.
    """
    if rounds < 1:
        raise InputError(f"the measurement has {rounds} rounds, expected at least 1")
    require_contract(bundle.manifest)
    file = chunk_file(backend)
    place = bundle.root / file
    for part in (place.parent, place):
        if part.is_symlink():
            raise BundleFormatError(
                f"{part} is a link, but records are written only inside the bundle. Remove it."
            )
    with only_build(bundle.root):
        replaced = _date_before(bundle, backend)
        try:
            with atomic_file(place) as temporary:  # before measuring: it may not be writable
                record = _measured(bundle, backend, sizes, rounds, step, runs)
                temporary.write_text(record.to_json(), encoding="utf-8")
        except BaseException:
            with contextlib.suppress(OSError):
                place.parent.rmdir()  # fails, as it should, if it is not empty
            raise
    _warn(record)
    return ChunkReport(file=file, record=record, replaced=replaced, left_out=sizes.left_out)


def _measured(
    bundle: Bundle,
    backend: CpuBackend,
    sizes: ChunkSizes,
    rounds: int,
    step: Callable[[str], object],
    runs: Opener,
) -> ChunkRecord:
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    load = load_averages()
    with runs(bundle, backend, sizes.categories) as run:
        times = timed_in_turns(run, sizes.chunks, rounds, step)
    version = library_version(backend)
    if version is None:
        raise BackendError(f"the library of {backend} is gone; install escnet-runtime[{backend}]")
    graphs = measured_graphs(bundle)
    kinds = {
        kind: KindTimes(
            graph=same[0],
            count=len(same),
            chunk=fastest_chunk({time.chunk: time.seconds for time in times[kind]}),
            times=times[kind],
        )
        for kind, same in kinds_of(list(graphs)).items()
    }
    record = ChunkRecord(
        machine=Machine.here(backend, version),
        chunk=sizes.chunks[0],
        graphs=graphs,
        kinds=kinds,
        measuring=Measuring(
            date=date,
            categories=sizes.categories,
            rounds=rounds,
            noise=NOISE,
            memory_bytes=sizes.memory_bytes,
            load_before=load,
            load_after=load_averages(),
        ),
    )
    return dataclasses.replace(record, chunk=fastest_chunk(record.together()))


def _date_before(bundle: Bundle, backend: CpuBackend) -> str | None:
    """The date of the existing record; "" if it cannot be read, None if there is none."""
    if not (bundle.root / chunk_file(backend)).exists():
        return None
    try:
        return read_chunks(bundle, backend).measuring.date
    except BundleError:
        return ""


def _warn(record: ChunkRecord) -> None:
    """Warn if the times suggest that the machine was busy with other work."""
    spreads = {
        chunk: sum(
            kind.count * (kind.times[index].slowest - kind.times[index].fastest)
            for kind in record.kinds.values()
        )
        / spent
        for index, (chunk, spent) in enumerate(record.together().items())
    }
    chunk, spread = max(spreads.items(), key=lambda item: item[1])
    if spread > _RESTLESS:
        _LOG.warning(
            "runs in chunks of %d differ by %.0f %%, so the result is uncertain: measure again "
            "when this machine is idle",
            chunk,
            100 * spread,
        )
