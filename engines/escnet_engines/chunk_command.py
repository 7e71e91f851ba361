"""``escnet-build`` for a CPU backend: its options, its progress and its output."""

import argparse
import dataclasses
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import ChunkRecord
from escnet_runtime.console import Console
from escnet_runtime.errors import InputError
from escnet_runtime.groups import whole_groups
from escnet_runtime.memory import available_memory

from .chunk_plan import chunk_sizes
from .chunks import ROUNDS, ChunkReport, measure_chunks

__all__ = ["measure_for_cpu"]

#: Options of compilers → their defaults.
_OF_COMPILERS: Final = {"target": "auto", "workspace": None, "plan": False}
_BEST: Final = "*"
_MEANS: Final = {
    "onnxruntime": "Labels do not depend on it.",
    "openvino": "Last bits of the logits may depend on it.",
}


def measure_for_cpu(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    """Measure, write the record and print a summary; returns exit code and ``--json`` object."""
    for option, default in _OF_COMPILERS.items():
        if getattr(arguments, option) != default:
            raise InputError(
                f"--{option} goes with a compiler; {arguments.backend} runs the graphs as they "
                "are, on this machine: leave it out"
            )
    rounds = ROUNDS if arguments.rounds is None else arguments.rounds
    if rounds < 1:
        raise InputError(f"--rounds is {rounds}, expected at least 1")
    bundle = Bundle.open(arguments.bundle)
    sizes = chunk_sizes(
        bundle.manifest,
        chunks=arguments.chunk,
        categories=arguments.categories,
        available=available_memory(),
    )
    runs = len(sizes.chunks) * (rounds + 1)
    with console.progress(f"measure on {arguments.backend}", runs) as advance:
        done = 0

        def step(what: str) -> None:
            nonlocal done
            advance(what, count=min(done, 1))  # each call announces a run that begins
            done += 1

        report = measure_chunks(bundle, arguments.backend, sizes, rounds=rounds, step=step)
    console.print(_table(report.record))
    console.print("\n".join(_summary(bundle, report)))
    return 0, _document(bundle, report)


def _table(record: ChunkRecord) -> Table:
    """Milliseconds a category, by graph and chunk."""
    table = Table(
        title=f"ms a category, of {record.measuring.categories} ({_BEST} best)",
        title_justify="left",
    )
    table.add_column("chunks of")
    together = record.together()
    for chunk in together:
        table.add_column(str(chunk), justify="right")
    for name, kind in record.kinds.items():
        label = f"{name} ×{kind.count}" if kind.count > 1 else name
        times = {time.chunk: time.seconds for time in kind.times}
        table.add_row(label, *_cells(times, kind.chunk, record.measuring.categories))
    table.add_section()
    table.add_row("all of an image", *_cells(together, record.chunk, record.measuring.categories))
    return table


def _cells(seconds: dict[int, float], best: int, categories: int) -> list[Text]:
    return [
        Text(
            f"{1000 * spent / categories:#.3g}{_BEST if chunk == best else ' '}",
            "bold green" if chunk == best else "",
        )
        for chunk, spent in seconds.items()
    ]


def _summary(bundle: Bundle, report: ChunkReport) -> list[str]:
    record = report.record
    machine = record.machine
    lines = [
        f"{machine.backend} {machine.version} runs this bundle on this machine "
        f"({machine.processor}, {machine.cores} cores) in chunks of {record.chunk} categories from "
        f"now on{_against_own(bundle, record)}. {_MEANS[machine.backend]}",
        f"Written to {report.file}. Timed runs of each chunk: {record.measuring.rounds}.",
    ]
    if report.replaced is not None:
        when = f"of {report.replaced}" if report.replaced else "which was damaged"
        lines[1] += f" It replaces the record {when}."
    if report.left_out:
        left_out = ", ".join(map(str, report.left_out))
        lines.append(f"Not measured, for lack of free memory: chunks of {left_out}.")
    return lines


def _against_own(bundle: Bundle, record: ChunkRecord) -> str:
    """How the measured chunk compares with the bundle's own."""
    constants = bundle.manifest.constants
    own, together = whole_groups(constants.chunk, constants.group), record.together()
    if own == record.chunk:
        return ", the bundle's own"
    if own not in together:
        return f" (the bundle's own is {own}, which was not measured)"
    change = together[record.chunk] / together[own] - 1
    return f" (with the bundle's own, {own}, these graphs take {-change / (1 + change):+.0%} time)"


def _document(bundle: Bundle, report: ChunkReport) -> dict[str, Any]:
    record = report.record
    return {
        "bundle": str(bundle.root),
        "backend": record.machine.backend,
        "version": record.machine.version,
        "target": "cpu",
        "engines": [],
        "file": report.file,
        "replaced": report.replaced is not None,
        "chunk": record.chunk,
        "chunks": [
            {"chunk": chunk, "seconds": spent} for chunk, spent in record.together().items()
        ],
        "left_out": list(report.left_out),
        "machine": dataclasses.asdict(record.machine),
        "graphs": [
            {
                "graph": kind.graph,
                "count": kind.count,
                "chunk": kind.chunk,
                "times": [dataclasses.asdict(time) for time in kind.times],
            }
            for kind in record.kinds.values()
        ],
        "measuring": dataclasses.asdict(record.measuring),
    }
