"""``escnet-build``: compiles a bundle's graphs for a GPU, or measures chunks for a CPU."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import CPU_BACKENDS
from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.engine_record import MOST_WORKSPACE
from escnet_runtime.errors import InputError

from .build import BuildReport, build_engines
from .chunk_command import measure_for_cpu
from .chunks import ROUNDS
from .libraries import COMPILERS, open_library
from .library import Library
from .plan import BuildPlan, plan_build

__all__ = ["build_result", "build_shown", "build_summary", "main"]

_MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(_parser(), _build, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-build",
        "Compile the graphs of a bundle into engines, which are written into the bundle. Engines\n"
        "that are there already and still fit are kept. For onnxruntime and openvino, which run\n"
        "the graphs as they are, measure which chunk (categories worked on at a time) is the\n"
        "fastest on this machine, and record it in the bundle.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--backend",
        required=True,
        choices=[*COMPILERS, *CPU_BACKENDS],
        help="the compiler, or the CPU backend to measure",
    )
    parser.add_argument(
        "--target",
        default="auto",
        metavar="auto|sm_86,...",
        help="GPUs to compile for: auto, the one in this machine (the default), or, with "
        "tensorrt-rtx, any list, which needs no GPU",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        nargs="+",
        metavar="N",
        help="categories at a time to tune for; the largest decides the memory (default: the "
        "bundle's own). On a CPU: the chunks to measure (default: 16, 32, 48, 64 and the bundle's "
        "own, as far as they fit the memory)",
    )
    parser.add_argument(
        "--workspace",
        type=int,
        metavar="MIB",
        help="largest scratch memory of one layer (default: no limit); --plan ignores it",
    )
    parser.add_argument(
        "--categories",
        type=int,
        metavar="N",
        help="on a CPU: number of categories to measure with (default: 150, or enough to fill the "
        "largest chunk)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help=f"on a CPU: timed runs of each chunk (default: {ROUNDS})",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="show what a build would take, memory and time, and build nothing; compares several "
        "chunks unless --chunk is given",
    )
    return parser


def build_shown(
    console: Console,
    bundle: Bundle,
    library: Library,
    *,
    target: str,
    chunks: Sequence[int] | None = None,
    workspace: int | None = None,
) -> BuildReport:
    """:func:`~escnet_engines.build_engines` with a progress bar."""
    total = len(bundle.manifest.stages)
    with console.progress(f"build for {library.backend}", total) as advance:
        seen = 0.0

        def step(graph: str, phase: str, done: float) -> None:
            nonlocal seen
            advance(f"{graph}, {phase}" if phase else graph, count=done - seen)
            seen = done

        return build_engines(
            bundle,
            library,
            target=target,
            chunks=chunks,
            workspace=workspace,
            progress=step,
        )


def _build(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    if arguments.backend in CPU_BACKENDS:
        return measure_for_cpu(arguments, console)
    for option in ("categories", "rounds"):
        if getattr(arguments, option) is not None:
            raise InputError(
                f"--{option} goes with the backends {' and '.join(CPU_BACKENDS)}, whose chunks are "
                f"measured; {arguments.backend} times kernels itself: leave it out"
            )
    if arguments.workspace is not None and not 1 <= arguments.workspace <= MOST_WORKSPACE // _MIB:
        raise InputError(
            f"--workspace is {arguments.workspace} MiB, expected 1 to {MOST_WORKSPACE // _MIB:,}"
        )
    bundle = Bundle.open(arguments.bundle)
    library = open_library(arguments.backend)
    if arguments.plan:
        return 0, _plan(arguments, console, bundle, library)
    report = build_shown(
        console,
        bundle,
        library,
        target=arguments.target,
        chunks=arguments.chunk,
        workspace=None if arguments.workspace is None else arguments.workspace * _MIB,
    )
    console.print(build_summary(report))
    return 0, build_result(bundle, report)


def _plan(
    arguments: argparse.Namespace, console: Console, bundle: Bundle, library: Library
) -> dict[str, Any]:
    with console.progress("plan", len(bundle.manifest.stages)) as advance:
        plan = plan_build(
            bundle, library, target=arguments.target, chunks=arguments.chunk, step=advance
        )
    console.print(_chunk_table(plan), _plan_summary(plan, library))
    return {
        "bundle": str(bundle.root),
        "backend": library.backend,
        "version": library.version,
        "target": ",".join(plan.targets),
        "bytes": plan.engine_bytes,
        "host_bytes": plan.host_bytes,
        "seconds": None if plan.seconds is None else round(plan.seconds, 1),
        "chunks": [dataclasses.asdict(chunk) for chunk in plan.chunks],
        "engines": [
            {
                "graph": graph.graph,
                "bytes": graph.engine_bytes,
                "scratch_bytes": graph.scratch_bytes,
                "boundary_bytes": graph.boundary_bytes,
                "host_bytes": graph.host_bytes,
                "seconds": None if graph.seconds is None else round(graph.seconds, 2),
            }
            for graph in plan.graphs
        ],
        "model": {
            "library": plan.model.library,
            "cpu": plan.model.cpu,
            "builds": plan.model.builds,
            "worst": plan.model.worst,
        },
    }


def _chunk_table(plan: BuildPlan) -> Table:
    table = Table(title="Estimated memory on the device, MB", title_justify="left")
    for column in ("largest chunk", "engines", "shared scratch", "inputs, outputs", "together"):
        table.add_column(column, justify="right")
    for chunk in plan.chunks:
        sizes = (
            plan.engine_bytes,
            chunk.scratch_bytes,
            chunk.boundary_bytes,
            chunk.device_bytes,
        )
        table.add_row(str(chunk.chunk), *[f"{size / 1e6:,.0f}" for size in sizes])
    return table


def _plan_summary(plan: BuildPlan, library: Library) -> str:
    model = plan.model
    worst = model.worst
    time = (
        f"unknown: {library.backend} times kernels on the GPU, and was not measured"
        if plan.seconds is None
        else f"about {plan.seconds:.0f} s on one idle core ({model.cpu})"
    )
    return (
        f"Compiling for {', '.join(plan.targets)}: {time}; about {plan.host_bytes / 1e6:,.0f} MB "
        "of memory here.\n"
        f"Estimated from {model.builds} builds with {model.library}; the worst of them was off by "
        f"a factor of {worst['engine_bytes']:.1f} in size, {worst['scratch_bytes']:.1f} in "
        f"scratch, {worst['seconds']:.1f} in time and {worst['host_bytes']:.1f} in memory here. "
        "Nothing was built."
    )


def build_summary(report: BuildReport) -> str:
    """A line for people: what was built or kept, and where."""
    record = report.record
    fingerprint = record.fingerprint
    size = sum(engine.bytes for engine in record.engines.values())
    how = "were there and fit" if report.reused else f"built in {report.seconds:.0f} s"
    scratch = record.scratch_bytes
    size_known = "an unknown amount" if scratch is None else f"{scratch / 1e6:.1f} MB"
    return (
        f"{report.folder}: {len(record.engines)} engines of {fingerprint.backend} "
        f"{fingerprint.version} for {', '.join(fingerprint.targets)} {how}; "
        f"{size / 1e6:.1f} MB, {size_known} of scratch shared by all; up to "
        f"{max(report.chunks)} categories at a time"
    )


def build_result(bundle: Bundle, report: BuildReport) -> dict[str, Any]:
    """What ``--json`` prints of a build."""
    fingerprint = report.record.fingerprint
    return {
        "bundle": str(bundle.root),
        "backend": fingerprint.backend,
        "version": fingerprint.version,
        "target": ",".join(fingerprint.targets),
        "chunks": list(report.chunks),
        "reused": report.reused,
        "seconds": round(report.seconds, 3),
        "scratch_bytes": report.record.scratch_bytes,
        "engines": [
            {
                "graph": name,
                "file": f"{report.folder}/{engine.file}",
                "seconds": engine.seconds,
                "bytes": engine.bytes,
                "scratch_bytes": engine.scratch_bytes,
            }
            for name, engine in report.record.engines.items()
        ],
    }
