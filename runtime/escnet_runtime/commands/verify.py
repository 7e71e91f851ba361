"""``escnet-verify``: is a bundle whole, and does it compute on this device what it should?"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..backends import BACKENDS
from ..console import Console, command_parser, printable, run_command
from ..errors import BackendError, InputError
from ..verify import VerifyReport, verify_bundle

if TYPE_CHECKING:
    from ..layers import LayersReport

__all__ = ["main"]

_EPILOG = """\
--layers needs Polygraphy: pip install "escnet-runtime[layers]". It runs each graph twice on the
golden picture, as it is and in float32, and compares what every node gives.
"""
_SHOWN = 5  # layers of a graph


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _verify, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-verify",
        "Check that a bundle's files are those that were written, and that this device computes\n"
        "with them what the float32 model computed. The exit code is 1 if a check fails.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the graphs (all that do)")
    layers = parser.add_argument_group("where in a graph numbers go wrong")
    add = layers.add_argument
    add("--layers", action="store_true", help="compare node by node as well")
    add("--stage", metavar="NAME", action="append", help="these graphs alone (all of them)")
    add(
        "--bound",
        metavar="X",
        type=float,
        help="largest relative L2 of a node (what the bundle allows a stage)",
    )
    add(
        "--reference",
        metavar="BUNDLE",
        type=Path,
        help="compare with the graphs of this bundle, say an fp32 export, by the names of tensors",
    )
    add(
        "--minimise",
        metavar="FILE",
        type=Path,
        help="write the smallest part of the first graph beyond the bound that is still beyond it",
    )
    return parser


def _verify(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    _check_options(arguments)
    with console.progress("verifying", None) as advance:
        seen = 0

        def step(done: int, total: int) -> None:
            nonlocal seen
            advance(f"files, {done / max(total, 1):.0%}", count=done - seen)
            seen = done

        report = verify_bundle(arguments.bundle, arguments.backend, progress=step)
    _show(report, console)
    document = _document(report)
    if arguments.layers:
        layers = _layers(arguments, report, console)
        _show_layers(layers, console)
        document["layers"] = layers.to_dict()
    return int(not report.passed), document


def _check_options(arguments: argparse.Namespace) -> None:
    given = [
        name for name in ("stage", "bound", "reference", "minimise") if getattr(arguments, name)
    ]
    if given and not arguments.layers:
        raise InputError(f"--{given[0]} goes with --layers: add that")
    if arguments.bound is not None and not arguments.bound > 0:
        raise InputError(f"--bound is {arguments.bound}, expected a number above 0")
    if arguments.layers:
        _layers_module()


def _document(report: VerifyReport) -> dict[str, Any]:
    return {
        "passed": report.passed,
        "checks": [
            {"name": check.name, "passed": check.passed, "detail": check.detail}
            for check in report.checks
        ],
        "verdict": asdict(report.verdict),
        "backends": [asdict(state) for state in report.backends],
        "engines": [asdict(folder) for folder in report.engines],
    }


def _show(report: VerifyReport, console: Console) -> None:
    verdict = report.verdict
    console.print(Text(printable(verdict.sentence), "bold green" if verdict.fine else "bold red"))
    if not verdict.fine:
        console.print(Text(printable(f"What to do: {verdict.advice}")))
    console.print(Text(printable(verdict.why)))
    for note in verdict.notes:
        console.print(Text(printable(f"Note: {note}"), "yellow"))
    for line in _unchecked(report):
        console.print(Text(printable(line), "dim"))
    console.print("")
    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        mark = Text("ok", "green") if check.passed else Text("FAILED", "bold red")
        mark = Text("note", "yellow") if check.note else mark
        table.add_row(mark, Text(printable(check.name)), Text(printable(check.detail)))
    console.print(table)


def _unchecked(report: VerifyReport) -> list[str]:
    """Backends that have not run, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for state in report.backends:
        if state.state == "not run":
            reasons.setdefault(state.detail, []).append(state.name)
    return [f"Not checked: {', '.join(names)}: {reason}." for reason, names in reasons.items()]


# --- Layers --------------------------------------------------------------------------------------


def _layers_module() -> Any:
    try:
        from .. import layers  # the optional Polygraphy
    except ModuleNotFoundError as error:
        raise BackendError(
            f"--layers needs {error.name}, which is not installed: install escnet-runtime[layers]"
        ) from error
    return layers


def _layers(
    arguments: argparse.Namespace, report: VerifyReport, console: Console
) -> "LayersReport":
    if any(check.name in ("manifest", "files") and not check.passed for check in report.checks):
        raise InputError(f"--layers needs a whole bundle. {report.verdict.sentence}")
    with console.progress("comparing layers", None) as advance:
        layers: LayersReport = _layers_module().compare_layers(
            arguments.bundle,
            stages=arguments.stage,
            backend=arguments.backend,
            bound=arguments.bound,
            reference=arguments.reference,
            minimise=arguments.minimise,
            progress=advance,
        )
    return layers


def _show_layers(layers: "LayersReport", console: Console) -> None:
    console.print("")
    for line in layers.summary().splitlines():
        console.print(Text(printable(line)))
    table = Table("graph", "node", "operator", "tensor", "relative L2", "largest value")
    for stage in layers.stages:
        worst = sorted(stage.layers, key=lambda layer: -layer.relative_l2)[:_SHOWN]
        first = [stage.first] if stage.first and stage.first not in worst else []
        for layer in first + worst:
            style = "red" if layer.relative_l2 > layers.bound else ""
            table.add_row(
                *(printable(text) for text in (stage.name, layer.node, layer.op, layer.tensor)),
                f"{layer.relative_l2:.1e}",
                f"{layer.largest:.3g}",
                style=style,
            )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
