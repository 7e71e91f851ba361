"""``escnet-bench precision``: what each precision of a model costs and gives, as a table."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from rich.table import Table

from escnet_runtime.bundle import sha256_file
from escnet_runtime.console import Console
from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.labelled import dataset_name, open_labelled

from .command_parts import titled_table
from .conditions import Conditions
from .models import require_checkpoint
from .results import Document, result_document

if TYPE_CHECKING:
    from .precision_table import PrecisionRow

__all__ = ["add_precision_options", "precision"]

_PRESET: Final = "tiny"
_PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8+fp16", "int8+fp32", "fp8+fp16")


def add_precision_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``escnet-bench precision`` takes, besides the common options and ``--output``."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="an escnet checkpoint (default: the trained tiny that ships)",
    )
    add(
        "--precisions",
        nargs="+",
        default=list(_PRECISIONS),
        metavar="NAME",
        help="precisions to compare; int8+fp32 is int8 with everything else in float32, likewise "
        f"fp8+fp32 (default: {' '.join(_PRECISIONS)})",
    )
    add(
        "--images",
        default="shapes:heldout",
        metavar="DATASET",
        help="labelled images to measure on (default: shapes:heldout)",
    )
    add(
        "--limit",
        type=int,
        default=24,
        metavar="N",
        help="use only the first N of them (default: 24)",
    )
    add(
        "--gate-images",
        default="shapes:train",
        metavar="DATASET",
        help="labelled images on which int8 and fp8 are calibrated and budgets are checked "
        "(default: shapes:train)",
    )
    add(
        "--gate-limit",
        type=int,
        default=4,
        metavar="N",
        help="use only the first N of them; each takes memory for all that its graphs compute "
        "(default: 4)",
    )
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep bundles and figures in this folder; the same command then resumes where it was "
        "interrupted (default: a temporary folder)",
    )
    add("--repeats", type=int, default=5, metavar="N", help="images to time (default: 5)")


def precision(arguments: argparse.Namespace, console: Console) -> Document:
    """Export and measure every precision and show a table; returns the document.

    Raises:
        InputError: an option cannot be used.
        BackendError: torch is not installed.
    """
    try:
        from escnet.weights import shipped_checkpoint

        from .precision_table import METHOD, Task, precision_rows
    except ModuleNotFoundError as error:
        raise BackendError(
            f"exporting needs {error.name}, which is not installed: install escnet-bench[torch]"
        ) from error
    for option in ("limit", "gate_limit", "repeats"):
        if getattr(arguments, option) < 1:
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{name} is {getattr(arguments, option)}, expected at least 1")
    checkpoint = arguments.checkpoint or shipped_checkpoint(_PRESET)
    require_checkpoint(checkpoint)
    images = len(open_labelled(arguments.images))
    task = Task(
        checkpoint=checkpoint,
        images=arguments.images,
        limit=min(arguments.limit, images),
        gate_images=arguments.gate_images,
        gate_limit=arguments.gate_limit,
        repeats=arguments.repeats,
    )
    conditions = Conditions.now(
        f"{METHOD}; images: {dataset_name(task.images)}, of the gate: the first {task.gate_limit} "
        f"of {dataset_name(task.gate_images)}; checkpoint: {checkpoint.name}, sha256 "
        f"{sha256_file(checkpoint)[:16]}",
        device="cpu",
    )
    names = tuple(dict.fromkeys(arguments.precisions))
    with ExitStack() as stack:
        work = arguments.work or Path(
            stack.enter_context(TemporaryDirectory(prefix="escnet-precision-"))
        )
        advance = stack.enter_context(
            console.progress("precisions", (len(names) + 1) * task.limit + 1)
        )
        rows = precision_rows(task, names, work, step=advance)
    console.print(_table(rows), METHOD)
    return result_document("precision", conditions.finished(), rows)


def _table(rows: Sequence["PrecisionRow"]) -> Table:
    table = titled_table(
        "Precisions",
        "precision",
        "mIoU",
        "of torch",
        "equal labels",
        "prompts flipped",
        "MB",
        "s an image",
        "kept higher",
        text=("precision", "kept higher"),
    )
    for row in rows:
        shares = ["" if value is None else f"{value:.2%}" for value in (row.miou, row.torch_miou)]
        table.add_row(
            row.precision,
            *shares,
            f"{row.pixel_agreement:.3%}",
            f"{row.prompt_flips} of {row.prompts}",
            f"{row.bytes / 1e6:.1f}",
            "not timed" if row.image_seconds is None else f"{row.image_seconds:.3f}",
            ", ".join(row.kept_higher) or "nothing",
        )
    return table
