"""Draws one image's sheet: ground truth, prediction, and how the correlation led to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from escnet_runtime.confusion import ignore_index
from escnet_runtime.lettering import fit
from escnet_runtime.palette import palette

from .layout import GAP, INK, PAPER, Colour, in_columns, line, paragraph, stacked
from .panels import (
    UNLABELLED,
    WRONG,
    draw_prompts,
    error_panel,
    heat_map,
    label_panel,
    mask_panel,
    photo_panel,
    viridis,
)
from .trace import CategoryTrace, ImageTrace

__all__ = ["WIDTH", "draw_sheet"]

#: Width of a sheet, px: still readable when a phone shows it whole, and a page shows it unscaled.
WIDTH: Final = 1280
_MARGIN: Final = 24
_INNER: Final = WIDTH - 2 * _MARGIN
_TITLE, _TEXT, _SMALL = 30, 23, 18  # letters, px
_GREY, _WARNING = (90, 90, 90), (176, 0, 32)
_ASPECT: Final = (0.4, 1.6)  # height by width of the panels: beyond, an image is squeezed
_LARGEST_CELL: Final = 240
_LEGEND: Final = 6  # classes in a legend
_BAR: Final = 160
_EXPLANATION: Final = (
    "Correlation of the category with the image on the model's grid; all maps of a row share one "
    "colour scale, the logits have their own. Outlines and dots are the prompts that are made of a "
    "map for the block behind it: regions, and the best point of each."
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of a legend."""

    colour: Colour | None
    name: str
    share: str


def draw_sheet(trace: ImageTrace, *, caption: str, note: str | None = None) -> Image.Image:
    """Draw an image's sheet, RGB, :data:`WIDTH` px wide and as high as it needs.

    Args:
        trace: of the image.
        caption: which model, how and on what, in a line or two.
        note: a warning that belongs on every picture of this model's masks.
    """
    parts = [
        line(trace.name, _TITLE, _INNER),
        paragraph(f"{_figures(trace)}. {caption}", _TEXT, _INNER),
    ]
    if note:
        parts.append(paragraph(note, _TEXT, _INNER, _WARNING))
    parts.append(_overview(trace))
    if trace.categories:
        parts.append(Image.new("RGB", (1, GAP), PAPER))  # air
        parts.append(_headings(len(trace.categories[0].scores) - 1))
        parts += [_category(trace, category) for category in trace.categories]
        parts += [_scale(), paragraph(_EXPLANATION, _SMALL, _INNER, _GREY)]
    content = stacked(parts)
    sheet = Image.new("RGB", (WIDTH, content.height + 2 * _MARGIN), PAPER)
    sheet.paste(content, (_MARGIN, _MARGIN))
    return sheet


def _figures(trace: ImageTrace) -> str:
    height, width = trace.truth.shape
    scores = trace.scores
    if scores.miou is None or scores.pixel_accuracy is None:
        return f"{width}x{height} px, none of them labelled"
    return (
        f"mIoU {scores.miou:.1%}, pixel accuracy {scores.pixel_accuracy:.1%} of this image "
        f"({width}x{height} px)"
    )


# --- Photo, ground truth, prediction, errors -----------------------------------------------------


def _overview(trace: ImageTrace) -> Image.Image:
    width = (_INNER - 3 * GAP) // 4
    size = _panel_size(trace, width)
    classes = len(trace.classes)
    accuracy, ignored = trace.scores.pixel_accuracy, ignore_index(trace.truth)
    wrong = "none" if accuracy is None else f"{1 - accuracy:.1%}"
    columns = [
        ("photo", photo_panel(trace.image, size), []),
        ("ground truth", label_panel(trace.truth, classes, size, ignored), _legend(trace, False)),
        ("prediction", label_panel(trace.prediction, classes, size), _legend(trace, True)),
        (
            "errors",
            error_panel(trace.image, trace.truth, trace.prediction, size),
            [_Entry(WRONG, "wrong", wrong)],
        ),
    ]
    return in_columns(
        [
            stacked([line(title, _TEXT, width), panel, _legend_panel(entries, width)])
            for title, panel, entries in columns
        ]
    )


def _panel_size(trace: ImageTrace, width: int) -> tuple[int, int]:
    low, high = _ASPECT
    aspect = trace.truth.shape[0] / trace.truth.shape[1]
    return width, round(width * min(max(aspect, low), high))


def _legend(trace: ImageTrace, predicted: bool) -> list[_Entry]:
    """The classes with most pixels, the sum of the others, and what has no label."""
    labels = trace.prediction if predicted else trace.truth
    # 255 means "not labelled" in the ground truth, but with 256 classes is one in the prediction.
    unlabelled = np.zeros(labels.shape, bool) if predicted else labels == ignore_index(labels)
    counts = np.bincount(labels[~unlabelled], minlength=len(trace.classes))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    colours = palette(len(trace.classes)).tolist()
    entries = [
        _Entry(tuple(colours[i]), trace.classes[i], _share(counts[i], labels.size))
        for i in order[:_LEGEND].tolist()
    ]
    rest = order[_LEGEND:]
    if len(rest):
        share = _share(counts[rest].sum(), labels.size)
        entries.append(_Entry(None, f"{len(rest)} more", share))
    if unlabelled.any():
        entries.append(_Entry(UNLABELLED, "not labelled", _share(unlabelled.sum(), labels.size)))
    return entries


def _share(pixels: int, of: int) -> str:
    share = pixels / of
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%"


def _legend_panel(entries: Sequence[_Entry], width: int) -> Image.Image:
    step = round(1.4 * _TEXT)
    panel = Image.new("RGB", (width, max(1, len(entries) * step)), PAPER)
    draw = ImageDraw.Draw(panel)
    for number, entry in enumerate(entries):
        middle = number * step + step // 2
        if entry.colour is not None:
            _swatch(draw, 0, middle, entry.colour)
        share = fit(entry.share, width // 2, _TEXT)
        share.draw(draw, width - share.width - _TEXT, middle, INK)
        room = width - share.width - 3 * _TEXT
        fit(entry.name, room, _TEXT).draw(draw, round(1.3 * _TEXT), middle, INK)
    return panel


def _swatch(draw: ImageDraw.ImageDraw, x: int, middle: int, colour: Colour) -> None:
    top = middle - _TEXT // 2
    draw.rectangle((x, top, x + _TEXT - 1, top + _TEXT - 1), fill=colour, outline=INK)


# --- A category, from block to block -------------------------------------------------------------


def _cell_width(maps: int) -> int:
    """Of ``maps`` correlation maps, the logits and the ground truth side by side."""
    count = maps + 2
    return min((_INNER - (count - 1) * GAP) // count, _LARGEST_CELL)


def _headings(blocks: int) -> Image.Image:
    titles = ["before block 0" if blocks else "correlation"]
    titles += [f"after block {block}" for block in range(blocks)]
    width = _cell_width(blocks + 1)
    return in_columns([line(title, _SMALL + 2, width) for title in [*titles, "logits", "truth"]])


def _category(trace: ImageTrace, category: CategoryTrace) -> Image.Image:
    size = _panel_size(trace, _cell_width(len(category.scores)))
    low, high = _range(category.scores)
    maps = [heat_map(values, size, low=low, high=high) for values in category.scores]
    for block, prompts in enumerate(category.prompts):
        maps[block] = draw_prompts(maps[block], prompts)
    low, high = _range(category.logits)
    cells = [
        *(_cell(panel, _range(own)) for panel, own in zip(maps, category.scores, strict=True)),
        _cell(heat_map(category.logits, size, low=low, high=high), (low, high)),
        mask_panel(trace.truth, category.index, size),
    ]
    return stacked([_category_title(trace, category), in_columns(cells)])


def _category_title(trace: ImageTrace, category: CategoryTrace) -> Image.Image:
    title = Image.new("RGB", (_INNER, round(1.5 * _TEXT)), PAPER)
    draw = ImageDraw.Draw(title)
    middle = title.height // 2
    colours = palette(len(trace.classes)).tolist()
    _swatch(draw, 0, middle, tuple(colours[category.index]))
    share = _share(category.pixels, trace.scores.pixels)
    words = f"IoU {category.iou:.1%}, {share} of the labelled pixels"
    figures = fit(words, _INNER // 2, _TEXT)
    figures.draw(draw, _INNER - figures.width, middle, INK)
    room = _INNER - figures.width - 3 * _TEXT
    fit(trace.classes[category.index], room, _TEXT).draw(draw, round(1.3 * _TEXT), middle, INK)
    return title


def _cell(panel: Image.Image, limits: tuple[float, float]) -> Image.Image:
    low, high = (f"{value:.3g}" for value in limits)
    return stacked([panel, line(f"{low} to {high}", _SMALL, panel.width, _GREY)], gap=2)


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Least and greatest of the finite values; (0, 0) if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _scale() -> Image.Image:
    """What the colours of a heat map mean."""
    bar = Image.fromarray(viridis(np.linspace(0, 1, _BAR)[None].repeat(_SMALL, 0)))
    return in_columns([line("low", _SMALL, 40, _GREY), bar, line("high", _SMALL, 60, _GREY)])
