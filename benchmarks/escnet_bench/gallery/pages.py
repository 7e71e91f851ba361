"""The files beside a gallery's sheets: its figures as JSON, and a page that shows the sheets."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from escnet_runtime.confusion import DEFINITION, Scores
from escnet_runtime.console import printable

from ..conditions import Conditions
from .trace import ImageTrace

__all__ = ["GalleryModel", "figures", "page", "sheet_caption", "sheet_entry", "sheet_file"]

_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]#|<>&~])")


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryModel:
    """Which model drew the gallery's masks, and on what; part of ``gallery.json``.

    Attributes:
        model: its name; ``kind`` is "bundle" or "checkpoint".
        weights: where they come from; ``trained`` is False for random ones.
        backend: what ran the graphs, for people.
        dataset: name of the dataset.
        classes: the dataset's; the model was asked for as many.
        note: a warning that belongs on every picture of this model's masks.
    """

    model: str
    kind: str
    precision: str
    weights: str
    trained: bool
    backend: str
    chunk: int
    dataset: str
    classes: int
    note: str | None


def sheet_file(name: str) -> str:
    """File name of an image's sheet: the image's name with unprintable characters escaped."""
    return f"{printable(name)}.png"


def sheet_caption(model: GalleryModel) -> str:
    """A sentence that names the model, how it ran, and on what."""
    return (
        f"{model.model} ({model.kind}, {model.precision}), {model.backend}; weights: "
        f"{model.weights}; one of {model.classes} categories of {model.dataset} for each pixel."
    )


def sheet_entry(trace: ImageTrace, asked: Sequence[str]) -> dict[str, Any]:
    """The figures of one sheet; ``asked`` is what the model was asked for, class by class."""
    height, width = trace.truth.shape
    return {
        "image": printable(trace.name),
        "sheet": sheet_file(trace.name),
        "width": width,
        "height": height,
        "miou": trace.scores.miou,
        "pixel_accuracy": trace.scores.pixel_accuracy,
        "pixels": trace.scores.pixels,
        "categories": [
            {
                "index": category.index,
                "name": trace.classes[category.index],
                "asked": asked[category.index],
                "pixels": category.pixels,
                "iou": category.iou,
            }
            for category in trace.categories
        ],
    }


def figures(
    model: GalleryModel, entries: list[dict[str, Any]], scores: Scores, conditions: Conditions
) -> dict[str, Any]:
    """The object of ``gallery.json``; ``scores`` are over all images of the gallery."""
    return {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "images": entries,
        **dataclasses.asdict(model),
        "definition": DEFINITION,
        "conditions": dataclasses.asdict(conditions),
    }


def page(model: GalleryModel, document: Mapping[str, Any]) -> str:
    """Markdown with every sheet and a sentence on its model and its accuracy."""
    note = f" **{_escaped(model.note)}.**" if model.note else ""
    lines = [
        f"# {_escaped(model.model)} on {_escaped(model.dataset)}",
        "",
        f"{_count(document['images'])}, made by `escnet-bench gallery`, with "
        f"{_escaped(sheet_caption(model))}{note} Over all of them: "
        f"{_percentages(document)}. All figures: [gallery.json](gallery.json).",
        "",
        "Above, the photo, its labels, the masks and what is wrong in them; below, the categories "
        "with most pixels: their correlation with the image before the first block and after each, "
        "the prompts that go into the next block, the logits, and the truth.",
    ]
    for entry in document["images"]:
        name, address = _escaped(entry["image"]), quote(entry["sheet"])
        lines += ["", f"## {name}", "", f"![{name}]({address})", "", _sentence(model, entry)]
    return "\n".join(lines) + "\n"


def _sentence(model: GalleryModel, entry: Mapping[str, Any]) -> str:
    """One sheet's conditions and figures; it stands for itself where the picture is shown alone."""
    iou = ", ".join(f"{_escaped(one['name'])} {one['iou']:.1%}" for one in entry["categories"])
    return (
        f"{_escaped(model.model)}, {model.kind}, weights {_escaped(model.weights)}, "
        f"{model.precision} on {_escaped(model.backend)}, {model.classes} categories of "
        f"{_escaped(model.dataset)}: {_percentages(entry)}" + (f"; IoU: {iou}." if iou else ".")
    )


def _percentages(figures: Mapping[str, Any]) -> str:
    if figures["miou"] is None:
        return "no pixel is labelled"
    return f"mIoU {figures['miou']:.1%}, pixel accuracy {figures['pixel_accuracy']:.1%}"


def _count(images: Sequence[object]) -> str:
    return "One image" if len(images) == 1 else f"{len(images)} images"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", printable(text))
