"""The options of ``escnet-bench latency``."""

import argparse
from pathlib import Path
from typing import Final, get_args

from escnet_runtime.manifest import Precision

from .plan import IMPLEMENTATIONS, Allocator

__all__ = ["PRESET", "REPEATS", "add_latency_options"]

#: The paper's base model, whose published speed people compare with.
PRESET: Final = "vit-b-16"
#: Rounds at most, on a CPU and on a GPU.
REPEATS: Final = {False: 10, True: 50}
_CATEGORIES: Final = [19, 58, 150, 847]
_MINUTES: Final = 14.0


def add_latency_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", metavar="NAME", help=f"a configuration (default: {PRESET})")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", help="an escnet checkpoint")
    model.add_argument("--bundle", type=Path, metavar="BUNDLE", help="folder of a bundle")
    add(
        "--categories",
        type=int,
        nargs="+",
        default=_CATEGORIES,
        metavar="N",
        help=f"numbers of categories (default: {' '.join(map(str, _CATEGORIES))})",
    )
    add(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS,
        metavar="NAME",
        help=f"which of {', '.join(IMPLEMENTATIONS)} (default: all that run here)",
    )
    add(
        "--allocators",
        nargs="+",
        choices=get_args(Allocator),
        metavar="NAME",
        help="allocators: default is malloc as it is, kept makes it keep freed memory (default: "
        "both; on a GPU only 'default')",
    )
    add(
        "--precision",
        choices=[one.value for one in Precision if one.value.startswith(("fp32", "fp16", "bf16"))],
        help="precision of the bundle to export (default: fp32 on a CPU, fp16 on a GPU)",
    )
    add(
        "--cat-seg",
        type=Path,
        metavar="FOLDER",
        help="a checkout of CAT-Seg: its own code is timed too, as torch-cat-seg",
    )
    add("--image", type=Path, metavar="FILE", help="image (default: a made-up one of 640×480)")
    add(
        "--minutes",
        type=float,
        default=_MINUTES,
        metavar="M",
        help="time for all measurements; what does not fit is left out and named (default: "
        f"{_MINUTES:g})",
    )
    add(
        "--repeats",
        type=int,
        metavar="N",
        help=f"most timed calls of each (default: {REPEATS[False]}, on a GPU {REPEATS[True]})",
    )
    add(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="auto: the GPU if there is one",
    )
