"""``escnet-eval``: mIoU and pixel accuracy of a bundle or a checkpoint on a labelled dataset."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from escnet_runtime.confusion import DEFINITION, Scores
from escnet_runtime.console import Console, command_parser, printable, run_command
from escnet_runtime.dataset import LabelledImages
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import ShapesImages, dataset_name, open_labelled
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.shortlist import parse_shortlist
from escnet_runtime.vocabulary import read_classes_file
from escnet_runtime.world import WORLD_VERSION

from .conditions import Conditions, device_of
from .eval_work import WorkFile, identity_of
from .evaluate import Evaluation, class_keys, evaluate
from .models import CHECKPOINT_SUFFIX, add_model_options, open_model
from .results import SCHEMA_VERSION, saving

__all__ = ["main"]

_SHOWN: Final = 30  # classes in the table
_METHOD: Final = f"all images at their own size; {DEFINITION}"
_EPILOG = f"""\
DATASET: a folder with images/*, labels/*.png (8 or 16 bits, index of the class; 255 resp. 65535 is
not labelled) and classes.json (list of names; synonyms separated by ", "), as escnet-prepare makes
it of a distributed data set; or a set of the built-in small world, drawn as it is needed:

shapes:heldout       300 scenes with compositions that the default model has never seen
shapes:heldout:SEED  the same with other scenes (SEED 0 is shapes:heldout)
shapes:train         scenes as in training

Figures of these sets are also given for groups of classes: held_out (compositions never seen, the
purpose of this world), seen (compositions of training), surfaces.

--classes-file may have any number of categories beyond the dataset's classes: first one for each
class, in the dataset's order, then the others, which no pixel is labelled as. A pixel that is given
one of these is wrong; they have no IoU and are not in the mean. With --merge-extra they count as
the last class.

{DEFINITION}.
Pixels that are not labelled do not count. A class that is not in the ground truth has no IoU (null)
and is not in the mean. An image that cannot be read is an error, because figures over fewer images
cannot be compared.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _eval, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-eval",
        "Measure mIoU and pixel accuracy of a bundle (without PyTorch) or of a checkpoint (needs "
        "escnet-bench[torch]); both run through the same pipeline.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    kinds = f"a {CHECKPOINT_SUFFIX} file or a folder"
    add("model", metavar="CHECKPOINT|BUNDLE", type=Path, help=kinds)
    add("dataset", metavar="DATASET", help="a folder, or shapes:...; see below")
    add_model_options(parser)
    add(
        "--merge-extra",
        action="store_true",
        help="categories beyond the dataset's classes count as its last class, as in PASCAL "
        "VOC-20b (default: they are wrong)",
    )
    add(
        "--window",
        choices=("none", "sliding"),
        default="none",
        help="sliding: the paper's protocol, five times the work (default: none)",
    )
    add(
        "--image-size",
        metavar="PX",
        type=int,
        help="side of the image that a checkpoint's model sees (default: the checkpoint's own)",
    )
    add(
        "--shortlist",
        metavar="K|auto",
        type=parse_shortlist,
        help="give the model only the K categories that come nearest to winning a pixel by their "
        "correlation, or, with auto, all that come near (default: no shortlist)",
    )
    add(
        "--correlation",
        action="store_true",
        help="measure only the correlation of the model's CLIP (its argmax, no ESC blocks): the "
        "baseline that the model has to beat",
    )
    add(
        "--limit",
        metavar="N",
        type=int,
        help="use only the first N images, in order of their names; of shapes:..., N scenes "
        "(default: all images, or 300 scenes)",
    )
    add(
        "--objects",
        metavar=("MIN", "MAX"),
        type=int,
        nargs=2,
        help="least and most objects in a scene of shapes:... (default: 2 6); more objects hide "
        "more of each other",
    )
    add("--output", metavar="FILE", type=Path, help="also write the JSON object to this file")
    add(
        "--work",
        metavar="FILE",
        type=Path,
        help="keep the counts in this file; the same command then resumes where it was interrupted",
    )
    return parser


def _eval(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(f"--limit is {arguments.limit}, expected at least 1")
    if arguments.merge_extra and arguments.classes_file is None:
        raise InputError(
            "--merge-extra goes with --classes-file, which lists the categories beyond the classes"
        )
    if arguments.work is not None and _same_file(arguments.work, arguments.output):
        raise InputError(
            f"--work and --output are both {arguments.work}: the result would replace the counts; "
            "name another file for one of them"
        )
    objects = None if arguments.objects is None else (arguments.objects[0], arguments.objects[1])
    dataset = open_labelled(arguments.dataset, scenes=arguments.limit, objects=objects)
    path = arguments.classes_file
    categories = None if path is None else read_classes_file(path)
    with (
        saving(arguments.output) as save,
        open_model(
            arguments.model,
            arguments.backend,
            chunk=arguments.chunk,
            image_size=arguments.image_size,
        ) as segmenter,
    ):
        conditions = _conditions(arguments.model, segmenter)
        total = min(len(dataset), arguments.limit or len(dataset))
        with console.progress("evaluate", total) as advance:
            found = evaluate(
                segmenter,
                dataset,
                categories=categories,
                merge_extra=arguments.merge_extra,
                window=arguments.window,
                shortlist=arguments.shortlist,
                correlation=arguments.correlation,
                limit=arguments.limit,
                work=_work(arguments, segmenter, dataset, categories),
                progress=advance,
            )
        document = {
            **_document(arguments, segmenter, found, conditions.finished()),
            **_source(dataset, arguments.dataset),
        }
        save(document)
    console.print(*_report(document, found))
    return 0, document


def _work(
    arguments: argparse.Namespace,
    segmenter: Segmenter,
    dataset: LabelledImages,
    categories: Sequence[str] | None,
) -> WorkFile | None:
    if arguments.work is None:
        return None
    identity = identity_of(
        arguments.model,
        dataset,
        dataset.names if categories is None else categories,
        merge_extra=arguments.merge_extra,
        window=arguments.window,
        shortlist=arguments.shortlist,
        correlation=arguments.correlation,
        image_size=segmenter.bundle.manifest.model.image_size,
        backend=segmenter.backend,
    )
    return WorkFile(arguments.work, identity)


def _same_file(one: Path, other: Path | None) -> bool:
    """Whether two paths are the same file, which may not exist yet."""
    return other is not None and os.path.realpath(one) == os.path.realpath(other)


def _conditions(model: Path, segmenter: Segmenter) -> Conditions:
    bundle = segmenter.bundle if model.is_dir() else None
    return Conditions.now(_METHOD, bundle, device=device_of(segmenter))


def _document(
    arguments: argparse.Namespace, segmenter: Segmenter, found: Evaluation, conditions: Conditions
) -> dict[str, Any]:
    manifest = segmenter.bundle.manifest
    keys = class_keys(found.names)
    asked = [*keys, *found.extra]
    scores = found.scores
    confusions = found.confusions
    return {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "images": found.images,
        "per_class": dict(zip(keys, scores.iou, strict=True)),
        "groups": {name: _group(one) for name, one in found.groups.items()},
        "model": manifest.model.name,
        "kind": "bundle" if arguments.model.is_dir() else "checkpoint",
        "precision": manifest.precision.value,
        "weights": manifest.model.weights,
        "backend": segmenter.backend,
        "image_size": manifest.model.image_size,
        "window": arguments.window,
        "correlation": arguments.correlation,
        "shortlist": arguments.shortlist,
        "kept_mean": found.kept_mean,
        "kept_max": found.kept_max,
        "chunk": segmenter.chunk,
        "categories": found.categories,
        "extra_categories": found.categories - len(found.names),
        "merge_extra": arguments.merge_extra,
        "classes": len(found.names),
        "classes_in_ground_truth": sum(value is not None for value in scores.iou),
        "pixels": scores.pixels,
        "confusions": None
        if confusions is None
        else [
            {"truth": keys[one.truth], "prediction": asked[one.prediction], "pixels": one.pixels}
            for one in confusions
        ],
        "seconds": round(found.seconds, 3),
        "runs": found.runs,
        "definition": DEFINITION,
        "note": segmenter.note,
        "schema_version": SCHEMA_VERSION,
        "conditions": dataclasses.asdict(conditions),
    }


def _group(scores: Scores) -> dict[str, Any]:
    return {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "classes_in_ground_truth": sum(value is not None for value in scores.iou),
        "pixels": scores.pixels,
    }


def _source(dataset: LabelledImages, where: str) -> dict[str, Any]:
    """Which images these are: for scenes, everything needed to draw the same ones again."""
    world = None
    if isinstance(dataset, ShapesImages):
        scenes = dataset.scenes
        world = {"version": WORLD_VERSION, "size": scenes.size, "objects": scenes.objects}
    return {"dataset": dataset_name(where), "world": world}


def _report(document: Mapping[str, Any], found: Evaluation) -> list[Table | str]:
    """The figures for people, with the classes in descending order of IoU."""
    table = Table(title="IoU by class", title_justify="left")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    there = [(name, iou) for name, iou in document["per_class"].items() if iou is not None]
    there.sort(key=lambda entry: -entry[1])
    for name, iou in there[:_SHOWN]:
        table.add_row(printable(name), f"{iou:.2%}")
    more = f"and {len(there) - _SHOWN} more: --json has them all\n" if len(there) > _SHOWN else ""
    absent = len(found.names) - len(there)
    what = "the correlation of its CLIP alone, " if document["correlation"] else ""
    given = f"{found.kept_mean:.1f} of {found.categories} categories given to the model"
    summary = (
        f"{more}{document['model']} ({document['kind']}, {document['precision']}), {what}window "
        f"{document['window']}, {document['backend']}: {found.images} images, {len(there)} classes "
        f"in the ground truth, {absent} not in it, {found.seconds:.1f} s"
        f"{'' if document['correlation'] else f'; {given}'}\n"
        f"mIoU {_percent(document['miou'])}, pixel accuracy {_percent(document['pixel_accuracy'])}"
    )
    for name, group in document["groups"].items():
        summary += (
            f"\n{name}: mIoU {_percent(group['miou'])} of {group['classes_in_ground_truth']} "
            f"classes, pixel accuracy {_percent(group['pixel_accuracy'])}"
        )
    if document["extra_categories"]:
        meaning = "as the last class" if document["merge_extra"] else "as wrong"
        summary += f"\n{document['extra_categories']} categories beyond the classes count {meaning}"
    if document["note"]:
        summary += f"\nnote: {document['note']}"
    return [table, summary]


def _percent(value: float | None) -> str:
    return "none: no pixel is labelled" if value is None else f"{value:.2%}"


if __name__ == "__main__":
    sys.exit(main())
