"""The chunk that is the fastest on this machine: measured for each graph, kept in the bundle."""

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
#: A smaller chunk needs less memory: it is taken if it is slower by no more than this share.
NOISE: Final = 0.03
#: Runs at one chunk that differ by more than this share of their time are worth a warning.
_RESTLESS: Final = 0.25

#: (bundle, backend, categories) → what runs the graphs.
Opener = Callable[[Bundle, CpuBackend, int], AbstractContextManager[Run]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkReport:
    """What a measurement found.

    Attributes:
        file: of the record, relative to the bundle.
        record: what stands in it.
        replaced: a record was there before, its date; "" if that was damaged, None if none was.
        left_out: chunks that would not fit the memory.
    """

    file: str
    record: ChunkRecord
    replaced: str | None
    left_out: tuple[int, ...]


def fastest_chunk(seconds: Mapping[int, float], noise: float = NOISE) -> int:
    """The smallest chunk that is within ``noise`` of the fastest.

    Args:
        seconds: by chunk.
        noise: a share of the fastest's time.
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
    """Time every kind of graph of ``bundle`` at every chunk, and write down the best.

    One chunk is for all graphs: the one with the least time of an image, in which each graph of a
    kind runs once. A record that was there is replaced, and stays if anything fails. A second
    measurement or a build of a bundle waits.

    Args:
        bundle: opened.
        backend: what runs the graphs.
        sizes: what to measure, from :func:`chunk_sizes`.
        rounds: timed runs of each chunk.
        step: told of each run before it.
        runs: opens what is timed.

    Raises:
        InputError: ``rounds`` is out of range, or the bundle cannot be used or written to.
        BackendError: the backend is not here, or a graph failed.
    """
    if rounds < 1:
        raise InputError(f"the measurement has {rounds} rounds, expected at least 1")
    require_contract(bundle.manifest)
    file = chunk_file(backend)
    place = bundle.root / file
    for part in (place.parent, place):
        if part.is_symlink():
            raise BundleFormatError(
                f"{part} is a link; records are written inside the bundle alone. Remove it."
            )
    with only_build(bundle.root):
        replaced = _date_before(bundle, backend)
        try:
            with atomic_file(place) as temporary:  # first: a place that cannot be written is told
                record = _measured(bundle, backend, sizes, rounds, step, runs)
                temporary.write_text(record.to_json(), encoding="utf-8")
        except BaseException:
            with contextlib.suppress(OSError):
                place.parent.rmdir()  # if there is nothing else in it
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
    """When the record that is there was measured; "" if it cannot be read, None without one."""
    if not (bundle.root / chunk_file(backend)).exists():
        return None
    try:
        return read_chunks(bundle, backend).measuring.date
    except BundleError:
        return ""


def _warn(record: ChunkRecord) -> None:
    """Say that the machine had other things to do."""
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
            "runs in chunks of %d differ by %.0f %%: measure again when this machine has nothing "
            "else to do",
            chunk,
            100 * spread,
        )
