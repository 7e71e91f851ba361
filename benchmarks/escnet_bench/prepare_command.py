"""``escnet-prepare``: a data set as it is distributed becomes a dataset folder."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from escnet_runtime.console import Console, command_parser, run_command
from escnet_runtime.errors import InputError

from .prepare import PREPARATIONS, require_free, write_dataset

__all__ = ["main"]

_EPILOG: Final = """\
What SOURCE holds (as the archives unpack):

coco-stuff          images/val2017/*.jpg; annotations/val2017/*.png or stuffthingmaps/val2017/*.png
                    of stuffthingmaps_trainval2017.zip; labels.txt of COCO-Stuff
ade20k-150          ADEChallengeData2016: images/validation, annotations/validation,
                    objectInfo150.txt
ade20k-847          ADE20K_2021_17_01: images/ADE/validation/**/*_seg.png with .jpg and .json;
                    the 847 names with --classes-file
pascal-context-59,  VOCdevkit/VOC2010: JPEGImages, trainval/*.mat, labels.txt, for 59 also
pascal-context-459  59_labels.txt; pascalcontext_val.txt, or the list of VOC 2010
pascal-voc-20,      VOCdevkit/VOC2012: JPEGImages, SegmentationClass, ImageSets; in 20 the
pascal-voc-20b      background is not labelled, in 20b it is the last class
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _prepare, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-prepare",
        "Make a dataset folder for escnet-eval of a data set as it is distributed. The folder "
        "appears when it is complete.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("kind", metavar="DATASET", choices=list(PREPARATIONS), help=", ".join(PREPARATIONS))
    add("source", metavar="SOURCE", type=Path, help="folder of the unpacked data set")
    add("--output", metavar="FOLDER", type=Path, required=True, help="folder to write")
    add("--split", choices=("train", "val"), default="val", help="(default: val)")
    add(
        "--classes-file",
        metavar="FILE",
        type=Path,
        help="names of the classes in the data set's order (default: the data set's own files)",
    )
    add("--copy", action="store_true", help="copy the images (default: hard links)")
    add("--limit", metavar="N", type=int, help="the first N images alone, in order of their names")
    return parser


def _prepare(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    limit = arguments.limit
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}, expected at least 1")
    require_free(arguments.output)
    plan = PREPARATIONS[arguments.kind](arguments.source, arguments.split, arguments.classes_file)
    plan = dataclasses.replace(plan, pairs=plan.pairs[:limit])
    with console.progress(f"prepare {plan.dataset}", len(plan.pairs)) as advance:
        written = write_dataset(plan, arguments.output, copy=arguments.copy, progress=advance)
    console.print(
        f"{arguments.output}: {written.images} images, {written.classes} classes, of which "
        f"{written.classes_present} occur; {written.labelled:.1%} of the pixels are labelled\n"
        f"{plan.origin}"
    )
    return 0, {
        "output": arguments.output,
        "dataset": plan.dataset,
        "split": plan.split,
        "origin": plan.origin,
        **dataclasses.asdict(written),
    }
