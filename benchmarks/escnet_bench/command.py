"""``escnet-bench``: puts the benchmarks together as subcommands.

Each benchmark has a module of its own with its options and its work.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from escnet_runtime.console import Console, add_common_options, command_parser, run_command

from .builds_command import add_builds_options, builds
from .footprint_command import add_footprint_options, footprint
from .gallery.command import add_gallery_options, gallery
from .gflop_command import add_gflop_options, gflop
from .latency.command import latency
from .latency.options import add_latency_options
from .parity_command import add_parity_options, parity
from .ppg_command import add_ppg_options, ppg
from .precision_command import add_precision_options, precision
from .report.command import add_report_options, report
from .results import Document, saving
from .shortlist_command import add_shortlist_options, shortlists

__all__ = ["main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Benchmark:
    """A subcommand.

    Attributes:
        about: what it does, in one line that begins with a small letter.
        add_options: adds its options besides the common ones.
        run: measures, shows tables, and returns the object that ``--json`` prints.
        writes_result: whether it has the common ``--output``, a file for this object; a benchmark
            that writes something else has an ``--output`` of its own.
    """

    about: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], Document]
    writes_result: bool = True


_BENCHMARKS: Final = {
    "gflop": _Benchmark(
        about="count the operations of one image (needs torch)",
        add_options=add_gflop_options,
        run=gflop,
    ),
    "latency": _Benchmark(
        about="time of an image, beside PyTorch and others, with memory, floor and energy",
        add_options=add_latency_options,
        run=latency,
    ),
    "footprint": _Benchmark(
        about="memory, time and cold start of a bundle (no torch)",
        add_options=add_footprint_options,
        run=footprint,
    ),
    "ppg": _Benchmark(
        about="time of the prompt generator on this CPU",
        add_options=add_ppg_options,
        run=ppg,
    ),
    "builds": _Benchmark(
        about="compile a bundle's graphs: size, scratch, time and memory of each build (no torch)",
        add_options=add_builds_options,
        run=builds,
    ),
    "precision": _Benchmark(
        about="what each precision costs: mIoU, equal labels, flips, size, CPU time (needs torch)",
        add_options=add_precision_options,
        run=precision,
    ),
    "shortlist": _Benchmark(
        about="what giving the model fewer of many categories saves and costs (no torch)",
        add_options=add_shortlist_options,
        run=shortlists,
    ),
    "parity": _Benchmark(
        about="a bundle on labelled images, against the truth and float32 PyTorch (if it is here)",
        add_options=add_parity_options,
        run=parity,
    ),
    "report": _Benchmark(
        about="result files of any number of machines as one page and plots",
        add_options=add_report_options,
        run=report,
        writes_result=False,
    ),
    "gallery": _Benchmark(
        about="draw images with their masks and how the correlation and the prompts lead to them",
        add_options=add_gallery_options,
        run=gallery,
        writes_result=False,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _bench, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-bench",
        "Measure ESC-Net, or draw what it does; the conditions are recorded with every result.",
        common=False,
    )
    subparsers = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, benchmark in _BENCHMARKS.items():
        about = benchmark.about
        own: argparse.ArgumentParser = subparsers.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False
        )
        if benchmark.writes_result:
            own.add_argument(
                "--output",
                type=Path,
                metavar="FILE",
                help="also write the JSON object to this file",
            )
        add_common_options(own)
        benchmark.add_options(own)
    return parser


def _bench(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    benchmark = _BENCHMARKS[arguments.benchmark]
    if not benchmark.writes_result:
        return 0, benchmark.run(arguments, console)
    with saving(arguments.output) as save:
        document = benchmark.run(arguments, console)
        save(document)
    return 0, document
