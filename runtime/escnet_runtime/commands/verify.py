"""``escnet-verify``: is a bundle whole, and does it compute on this device what it should?"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..backends import BACKENDS
from ..console import Console, command_parser, printable, run_command
from ..verify import VerifyReport, verify_bundle

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _verify, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-verify",
        "Check that a bundle's files are those that were written, and that this device computes\n"
        "with them what the float32 model computed. The exit code is 1 if a check fails.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="what runs the graphs (auto)"
    )
    return parser


def _verify(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    with console.progress("verifying", None) as advance:
        seen = 0

        def step(done: int, total: int) -> None:
            nonlocal seen
            advance(f"files, {done / max(total, 1):.0%}", count=done - seen)
            seen = done

        report = verify_bundle(arguments.bundle, arguments.backend, progress=step)
    _show(report, console)
    checks = [asdict(check) for check in report.checks]
    return int(not report.passed), {"passed": report.passed, "checks": checks}


def _show(report: VerifyReport, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        mark = Text("ok", "green") if check.passed else Text("FAILED", "bold red")
        table.add_row(mark, check.name, Text(printable(check.detail)))
    console.print(table)
    failed = sum(not check.passed for check in report.checks)
    if failed:
        count = f"{failed} of {len(report.checks)} checks"
        verdict = Text(f"Do not rely on this bundle on this device: {count} failed.", "bold red")
    else:
        verdict = Text("The bundle is whole and computes on this device what it should.", "green")
    console.print(verdict)
