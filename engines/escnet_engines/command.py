"""``escnet-build``: a bundle's graphs become engines for a GPU."""

import argparse
from pathlib import Path
from typing import Any

from escnet_runtime.bundle import Bundle
from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.errors import InputError

from .build import BuildReport, build_engines
from .libraries import COMPILERS, open_library

__all__ = ["main"]

_MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    return run_command(_parser(), _build, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-build",
        "Compile the graphs of a bundle into engines, beside them in the bundle. Engines that are\n"
        "there already and still fit are kept.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--backend",
        required=True,
        choices=[*COMPILERS, "onnxruntime"],
        help="what compiles (onnxruntime runs the graphs as they are: nothing to build)",
    )
    parser.add_argument(
        "--target",
        default="auto",
        metavar="auto|sm_86,...",
        help="GPUs to compile for: the one that is here (auto), or, with tensorrt-rtx, any list, "
        "also without a GPU",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        nargs="+",
        metavar="N",
        help="categories at a time to tune for; the largest bounds the memory (default: the "
        "bundle's own)",
    )
    parser.add_argument(
        "--workspace", type=int, metavar="MIB", help="memory that one layer may use at most"
    )
    return parser


def _build(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    if arguments.backend == "onnxruntime":
        raise InputError(
            "ONNX Runtime runs the graphs of a bundle as they are: there is nothing to build"
        )
    if arguments.workspace is not None and arguments.workspace < 1:
        raise InputError(f"--workspace is {arguments.workspace}, expected at least 1 MiB")
    bundle = Bundle.open(arguments.bundle)
    library = open_library(arguments.backend)
    total = len(bundle.manifest.stages)
    with console.progress("building", total) as advance:
        seen = 0.0

        def step(graph: str, phase: str, done: float) -> None:
            nonlocal seen
            advance(f"{graph}, {phase}" if phase else graph, count=done - seen)
            seen = done

        report = build_engines(
            bundle,
            library,
            target=arguments.target,
            chunks=arguments.chunk,
            workspace=None if arguments.workspace is None else arguments.workspace * _MIB,
            progress=step,
        )
    console.print(_summary(report))
    return 0, _result(bundle, report)


def _summary(report: BuildReport) -> str:
    record = report.record
    fingerprint = record.fingerprint
    size = sum(engine.bytes for engine in record.engines.values())
    how = "were there and fit" if report.reused else f"built in {report.seconds:.0f} s"
    scratch = record.scratch_bytes
    shared = "" if scratch is None else f", {scratch / 1e6:.1f} MB of scratch shared by all"
    return (
        f"{report.folder}: {len(record.engines)} engines of {fingerprint.backend} "
        f"{fingerprint.version} for {', '.join(fingerprint.targets)} {how}; "
        f"{size / 1e6:.1f} MB{shared}; up to {max(report.chunks)} categories at a time"
    )


def _result(bundle: Bundle, report: BuildReport) -> dict[str, Any]:
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
