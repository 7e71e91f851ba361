"""The legend beside a picture: a colour, a name and a share for each category."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from escnet_runtime.lettering import fit, wrap
from escnet_runtime.palette import palette

__all__ = [
    "INK",
    "LONGEST_NAME",
    "PAPER",
    "WARNING",
    "LegendEntry",
    "font_size",
    "legend_entries",
    "stands_below",
    "with_legend",
]

_FONT_SIZES = (14, 64)  # px; between them it grows with the picture
LONGEST_NAME = 15  # in font sizes
_NARROWEST_NOTE = 16  # in font sizes
_MOST_COLUMNS = 8
PAPER, INK, WARNING = (255, 255, 255), (24, 24, 24), (176, 0, 32)


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """A line of the legend; ``colour`` is None for the line that sums up the rest."""

    name: str
    share: str
    colour: tuple[int, ...] | None


def legend_entries(
    fractions: NDArray[np.float64], names: Sequence[str], largest: int
) -> list[LegendEntry]:
    """The ``largest`` categories that are there, and a line for the rest."""
    order = np.argsort(-fractions, kind="stable")[: np.count_nonzero(fractions)]
    colours = palette(len(names)).tolist()
    entries = [
        LegendEntry(name=names[i], share=_percent(fractions[i]), colour=tuple(colours[i]))
        for i in order[:largest].tolist()
    ]
    rest = order[largest:]
    if len(rest):
        share = _percent(fractions[rest].sum())
        entries.append(LegendEntry(name=f"{len(rest)} more", share=share, colour=None))
    return entries


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if fraction >= 0.0005 else "< 0.1 %"


def font_size(width: int, height: int) -> int:
    """Font size of a picture's legend, in px."""
    smallest, largest = _FONT_SIZES
    return min(max(round(math.sqrt(width * height) / 45), smallest), largest)


def stands_below(width: int, height: int) -> bool:
    """Whether the legend of a picture stands below it, and not to the right."""
    return width > 2 * height


def with_legend(picture: Image.Image, entries: list[LegendEntry], note: str | None) -> Image.Image:
    """Picture and legend on one sheet."""
    size = font_size(picture.width, picture.height)
    below = stands_below(picture.width, picture.height)
    panel = _draw_panel(
        entries,
        note,
        size=size,
        width=picture.width if below else None,
        height=None if below else picture.height,
    )
    corner = (0, picture.height) if below else (picture.width, 0)
    width = max(picture.width, corner[0] + panel.width)
    height = max(picture.height, corner[1] + panel.height)
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(panel, corner)
    return sheet


def _draw_panel(
    entries: list[LegendEntry],
    note: str | None,
    *,
    size: int,
    width: int | None,
    height: int | None,
) -> Image.Image:
    """The legend in letters of ``size`` px, in columns that suit a given width or height in px."""
    names = [fit(entry.name, LONGEST_NAME * size, size) for entry in entries]
    shares = [fit(entry.share, LONGEST_NAME * size, size) for entry in entries]
    line, gap = round(1.5 * size), size // 2
    name_width = max(text.width for text in names)
    column = size + gap + name_width + 2 * gap + max(text.width for text in shares)
    if width is not None:
        columns = min(max(1, (width - size) // (column + size)), _MOST_COLUMNS)
    else:
        columns = 1 if (len(entries) + 1) * line <= (height or 0) else 2
    rows = math.ceil(len(entries) / columns)
    columns = math.ceil(len(entries) / rows)
    content = max(columns * (column + size) - size, _NARROWEST_NOTE * size if note else 0)
    lines = wrap(note, content, size) if note else []
    heading = len(lines) * line + (gap if lines else 0)
    panel = Image.new("RGB", (content + 2 * size, heading + rows * line + size), PAPER)
    draw = ImageDraw.Draw(panel)
    for number, text in enumerate(lines):
        text.draw(draw, size, gap + number * line + line // 2, WARNING)
    for number, (entry, name, share) in enumerate(zip(entries, names, shares, strict=True)):
        x = size + number // rows * (column + size)
        y = gap + heading + number % rows * line + line // 2
        if entry.colour is not None:
            box = (x, y - size // 2, x + size - 1, y - size // 2 + size - 1)
            draw.rectangle(box, fill=entry.colour, outline=INK)
        name.draw(draw, x + size + gap, y, INK)
        share.draw(draw, x + column - share.width, y, INK)
    return panel
