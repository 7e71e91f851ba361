"""What ``escnet-bench latency`` asks."""

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
    """What the command asks."""
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", metavar="NAME", help=f"a configuration (default: {PRESET})")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", help="an escnet checkpoint")
    model.add_argument("--bundle", type=Path, metavar="BUNDLE", help="a bundle that is there")
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
        help=f"of {', '.join(IMPLEMENTATIONS)} (default: all that run here)",
    )
    add(
        "--allocators",
        nargs="+",
        choices=get_args(Allocator),
        metavar="NAME",
        help="default: malloc as it is; kept: freed memory is kept (default: both; on a GPU the "
        "first)",
    )
    add(
        "--precision",
        choices=[one.value for one in Precision if one.value.startswith(("fp32", "fp16", "bf16"))],
        help="of the bundle that is exported (default: fp32 on a CPU, fp16 on a GPU)",
    )
    add(
        "--cat-seg",
        type=Path,
        metavar="FOLDER",
        help="a checkout of CAT-Seg: its own code is timed too, as torch-cat-seg",
    )
    add("--image", type=Path, metavar="FILE", help="to segment (default: a made-up one of 640×480)")
    add(
        "--minutes",
        type=float,
        default=_MINUTES,
        metavar="M",
        help=f"for all of it; what does not fit is left out and named (default: {_MINUTES:g})",
    )
    add(
        "--repeats",
        type=int,
        metavar="N",
        help=f"timed calls, at most (default: {REPEATS[False]}, on a GPU {REPEATS[True]})",
    )
    add(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="auto: the GPU if there is one",
    )
