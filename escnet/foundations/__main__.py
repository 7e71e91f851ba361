"""``python -m escnet.foundations --output FOLDER``: what ``make tiny`` runs."""

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from escnet.presets import preset
from escnet.train.loop import Stopped
from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.errors import InputError

from .make import PROVENANCE, make_tiny
from .recipe import RECIPES, TINY, TWO_CORES, Recipe


def _make(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    try:
        recipe = RECIPES[arguments.recipe or _fitting(console)]
        if arguments.ship:
            _require_presets_size(recipe)
        checkpoint = make_tiny(arguments.output, recipe=recipe, console=console)
    except Stopped as stop:
        console.err.print(Text(f"{stop}: run the same command again"), soft_wrap=True)
        return 128 + stop.number, {"output": str(arguments.output), "stopped": True}
    if arguments.ship:
        arguments.ship.mkdir(parents=True, exist_ok=True)
        for path in (checkpoint, checkpoint.with_name(PROVENANCE)):
            with atomic_file(arguments.ship / path.name) as temporary:
                shutil.copyfile(path, temporary)
    console.print(f"{checkpoint} ({checkpoint.stat().st_size / 1e6:.1f} MB)")
    return 0, {"checkpoint": str(checkpoint), "bytes": checkpoint.stat().st_size}


def _require_presets_size(recipe: Recipe) -> None:
    shown, size = recipe.escnet[-1].sizes, preset("tiny").clip.image_size
    if size not in shown:
        raise InputError(
            f"recipe {recipe.name} ends at {' and '.join(map(str, shown))} px and is the worse at "
            f"{size} px for it, which what ships is for: leave --ship out (python -m "
            f"escnet.foundations --output FOLDER --recipe {recipe.name})"
        )


def _fitting(console: Console) -> str:
    """The recipe for this machine."""
    recipe = TINY if torch.accelerator.is_available() else TWO_CORES
    console.print(f"recipe {recipe.name}, of {', '.join(RECIPES)}")
    return recipe.name


def main() -> int:
    """Run the command; returns its exit code."""
    parser = command_parser(
        "python -m escnet.foundations",
        "Train the preset tiny from its seed: CLIP, SAM, then ESC-Net. Run it again to resume.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="how long: tiny is for a GPU and made the weights that ship, two-cores for a CPU "
        "(default: what fits the machine)",
    )
    parser.add_argument(
        "--ship", type=Path, metavar="FOLDER", help="also copy checkpoint and provenance there"
    )
    return run_command(parser, _make)


if __name__ == "__main__":
    sys.exit(main())
