"""``escnet-prepare``: makes a dataset folder from a distributed data set or the small world."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from escnet_runtime.console import Console, add_common_options, command_parser, run_command
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import SHAPES, ShapesImages
from escnet_runtime.world import WORLD_VERSION
from escnet_runtime.world import dataset as shapes_dataset

from .prepare import PREPARATIONS, Written, require_free, write_dataset, write_samples

__all__ = ["main"]

_log = logging.getLogger(__name__)

_WORLD: Final = "shapes"
_COUNT: Final = 300  # scenes of a shapes folder
_EPILOG: Final = """\
What SOURCE holds (as the archives unpack):

coco-stuff          images/val2017/*.jpg; annotations/val2017/*.png or stuffthingmaps/val2017/*.png
                    of stuffthingmaps_trainval2017.zip; labels.txt of COCO-Stuff
ade20k-150          ADEChallengeData2016: images/validation, annotations/validation,
                    objectInfo150.txt
ade20k-847          ADE20K_2021_17_01: images/ADE/validation/**/*_seg.png with .jpg and .json;
                    the 847 names with --classes-file; published figures are of
                    --shorter-side 512
pascal-context-59,  VOCdevkit/VOC2010: JPEGImages, trainval/*.mat, labels.txt, for 59 also
pascal-context-459  59_labels.txt or their names with --classes-file; pascalcontext_val.txt, or
                    the list of VOC 2010
pascal-voc-20,      VOCdevkit/VOC2012: JPEGImages, SegmentationClass, ImageSets; in 20 the
pascal-voc-20b      background is not labelled, in 20b it is the last class; for training also
                    SegmentationClassAug with trainaug.txt, which go first

shapes has no SOURCE: it is drawn. What its scenes hold: docs/world.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-prepare",
        "Make a dataset folder for escnet-eval and escnet-train from a data set as it is "
        "distributed, or from the built-in small world. The folder appears when it is complete.",
        epilog=_EPILOG,
        common=False,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="DATASET")
    for kind in PREPARATIONS:
        _add_distributed(_subparser(kinds, kind, f"make a dataset folder of {kind}"))
    _add_shapes(_subparser(kinds, _WORLD, "draw a dataset folder of the small world"))
    return parser


def _subparser(kinds: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, required=True, help="folder to write"
    )
    add_common_options(parser)
    return parser


def _add_distributed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="folder of the unpacked data set")
    add("--split", choices=("train", "val"), default="val", help="part of it (default: val)")
    add(
        "--classes-file",
        metavar="FILE",
        type=Path,
        help="names for the classes: other names in the data set's order, or the data set's own in "
        "any order, which then becomes that of the classes (default: the data set's own files)",
    )
    add("--copy", action="store_true", help="copy the images (default: hard links)")
    add("--limit", metavar="N", type=int, help="only the first N images, in order of their names")
    add(
        "--shorter-side",
        metavar="PX",
        type=int,
        help="shrink images and label maps whose shorter side is longer, as published figures of "
        "ADE20K-847 do to 512 (default: their own sizes)",
    )


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--split",
        choices=("train", "heldout"),
        default="heldout",
        help="split whose compositions are shown (default: heldout)",
    )
    add("--count", metavar="N", type=int, default=_COUNT, help=f"scenes (default: {_COUNT})")
    add("--seed", metavar="SEED", type=int, help="seed for other scenes of heldout (default: 0)")
    add(
        "--objects",
        metavar=("MIN", "MAX"),
        type=int,
        nargs=2,
        default=(2, 6),
        help="least and most objects in a scene (default: 2 6)",
    )
    add("--size", metavar="PX", type=int, default=128, help="pixels a side (default: 128)")


def _run(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    prepare = _draw if arguments.kind == _WORLD else _prepare
    about, written = prepare(arguments, console)
    console.print(
        f"{arguments.output}: {written.images} images, {written.classes} classes, of which "
        f"{written.classes_present} occur; {written.labelled:.1%} of the pixels are labelled\n"
        f"{about['origin']}"
    )
    return 0, {"output": arguments.output, **about, **dataclasses.asdict(written)}


def _prepare(
    arguments: argparse.Namespace, console: Console
) -> tuple[Mapping[str, object], Written]:
    """From a distributed data set."""
    limit = arguments.limit
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}, expected at least 1")
    side = arguments.shorter_side
    if side is not None and side < 1:
        raise InputError(f"--shorter-side is {side}, expected at least 1")
    require_free(arguments.output)
    plan = PREPARATIONS[arguments.kind](arguments.source, arguments.split, arguments.classes_file)
    plan = plan.first(limit).shrunk(side)
    with console.progress(f"prepare {plan.dataset}", len(plan.pairs)) as advance:
        written = write_dataset(plan, arguments.output, copy=arguments.copy, progress=advance)
    for warning in written.warnings:
        _log.warning("%s", warning)
    about = {"dataset": plan.dataset, "split": plan.split, "origin": plan.origin, **plan.details}
    return about, written


def _draw(arguments: argparse.Namespace, console: Console) -> tuple[Mapping[str, object], Written]:
    """From the small world: what ``shapes:SPLIT`` names, as files."""
    split, seed = arguments.split, arguments.seed
    objects = (arguments.objects[0], arguments.objects[1])
    if split == "train" and seed is not None:
        raise InputError("--seed goes with --split heldout: there is one set of training scenes")
    name = f"{SHAPES}{split}" if seed is None else f"{SHAPES}{split}:{seed}"
    scenes = shapes_dataset(name, length=arguments.count, size=arguments.size, objects=objects)
    about = {
        "dataset": name,
        "split": split,
        "origin": f"the small world, version {WORLD_VERSION}: {len(scenes)} scenes of "
        f"{scenes.size} px with {objects[0]} to {objects[1]} objects",
    }
    require_free(arguments.output)
    with console.progress(f"draw {name}", len(scenes)) as advance:
        samples = ShapesImages(scenes=scenes)
        written = write_samples(samples, arguments.output, about, progress=advance)
    return about, written


if __name__ == "__main__":
    sys.exit(main())
