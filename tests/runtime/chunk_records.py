"""Records of measured chunks with made-up times."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from escnet_runtime.backends import library_version
from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import (
    ChunkRecord,
    ChunkTime,
    CpuBackend,
    KindTimes,
    Machine,
    Measuring,
)
from escnet_runtime.measured_chunks import chunk_file, measured_graphs
from escnet_runtime.order import kind_of

__all__ = ["change_record", "made_up_record", "write_record"]


def made_up_record(
    bundle: Bundle, *, chunk: int = 48, backend: CpuBackend = "onnxruntime"
) -> ChunkRecord:
    """Of this machine and these graphs, whatever is the fastest here."""
    version = library_version(backend)
    assert version is not None
    graphs = measured_graphs(bundle)
    kinds: dict[str, list[str]] = {}
    for name in graphs:
        kinds.setdefault(kind_of(name), []).append(name)
    times = tuple(
        ChunkTime(chunk=one, seconds=0.2 - one / 1000, fastest=0.1, slowest=0.3)
        for one in sorted({16, chunk})
    )
    return ChunkRecord(
        machine=Machine.here(backend, version),
        chunk=chunk,
        graphs=graphs,
        kinds={
            kind: KindTimes(graph=same[0], count=len(same), chunk=chunk, times=times)
            for kind, same in kinds.items()
        },
        measuring=Measuring(
            date="2026-11-26T12:00:00+00:00",
            categories=150,
            rounds=5,
            noise=0.03,
            memory_bytes=8 * 2**30,
            load_before=(0.5, 0.5, 0.5),
            load_after=None,
        ),
    )


def write_record(root: Path, record: ChunkRecord) -> Path:
    """Put it in its place in the bundle."""
    path = root / chunk_file(record.machine.backend)
    path.parent.mkdir(exist_ok=True)
    path.write_text(record.to_json(), encoding="utf-8")
    return path


def change_record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a record, whatever comes of it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
