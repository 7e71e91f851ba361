"""``python -m escnet_runtime.world``: the words of the small world, and a picture of it."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..console import Console, command_parser, run_command
from ..pictures import save_picture
from .sheet import contact_sheet
from .words import (
    COLOURS,
    DISTRACTORS,
    HELD_OUT,
    SHAPES,
    STUFF,
    TEXTURES,
    TRAINING,
    WORLD_VERSION,
    Composition,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _show, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m escnet_runtime.world",
        "List the names of the small world, and draw a sheet of its scenes.",
    )
    add = parser.add_argument
    add("--picture", metavar="FILE", type=Path, help="write the sheet to this file")
    add("--seed", metavar="N", type=int, default=0, help="first seed of the scenes (default: 0)")
    return parser


def _show(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    path = arguments.picture
    if path is not None:
        save_picture(contact_sheet(arguments.seed), path)
    held_out, distractors = _names(HELD_OUT), _names(DISTRACTORS)
    console.print(
        f"version {WORLD_VERSION}: {len(COLOURS)} colours, {len(TEXTURES)} textures, "
        f"{len(SHAPES)} shapes, {len(STUFF)} surfaces; {len(TRAINING)} training compositions",
        f"\n{len(held_out)} held out: {', '.join(held_out)}",
        f"\n{len(distractors)} of training beside them: {', '.join(distractors)}",
    )
    return 0, {
        "version": WORLD_VERSION,
        "colours": COLOURS,
        "textures": TEXTURES,
        "shapes": SHAPES,
        "surfaces": STUFF,
        "training": _names(TRAINING),
        "held_out": held_out,
        "distractors": distractors,
        "picture": path,
    }


def _names(compositions: Sequence[Composition]) -> list[str]:
    return [one.name for one in compositions]


if __name__ == "__main__":
    sys.exit(main())
