"""Results as a picture: a line for each variant, a dot for each seed, a stroke for their mean."""

import math
import statistics
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw

from escnet_runtime.lettering import fit

from .run import Result
from .table import Row, rows_of
from .variants import BASE, CORRELATION, PARTS

__all__ = ["plot_of"]

_WIDTH: Final = 880
_LABELS: Final = 310  # px left of the axis
_MARGIN: Final = 24
_LINE: Final = 24
_TITLE: Final = "mIoU, percent. Dots: seeds; strokes: their mean; line: the base"
_TEXT: Final = 14
_DOT: Final = 4
_BLACK: Final = (30, 30, 30)
_GREY: Final = (150, 150, 150)
_PALE: Final = (226, 226, 226)
_BLUE: Final = (38, 98, 176)


def plot_of(results: Sequence[Result]) -> Image.Image | None:
    """mIoU in percent of all variants, RGB; None if there is no result."""
    rows = rows_of(results)
    if not rows:
        return None
    lines = _lines(rows)
    picture = Image.new("RGB", (_WIDTH, 2 * _MARGIN + (len(lines) + 2) * _LINE), "white")
    draw, axis = ImageDraw.Draw(picture), _Axis(rows)
    top, bottom = _MARGIN + _LINE, _MARGIN + (len(lines) + 1) * _LINE
    _write(draw, _TITLE, _LABELS, _MARGIN + _LINE // 2 - 6, _BLACK)
    for tick in axis.ticks:
        draw.line([(axis.x(tick), top), (axis.x(tick), bottom)], fill=_PALE)
        _write(draw, f"{tick}", axis.x(tick) - 8, bottom + _LINE // 2, _GREY)
    if BASE.name in rows:
        x = axis.x(statistics.mean(rows[BASE.name].miou))
        draw.line([(x, top), (x, bottom)], fill=_BLUE)
    for number, (label, row) in enumerate(lines):
        y = top + number * _LINE + _LINE // 2
        if row is None:
            _write(draw, label, _MARGIN, y, _BLACK)
            continue
        _write(draw, label, _MARGIN + 16, y, _BLACK)
        mean = axis.x(statistics.mean(row.miou))
        draw.line([(mean, y - 8), (mean, y + 8)], fill=_BLACK, width=2)
        for value in row.miou:
            x = axis.x(value)
            draw.ellipse([x - _DOT, y - _DOT, x + _DOT, y + _DOT], outline=_BLUE, width=2)
    return picture


class _Axis:
    """Percent → px, with ticks at whole numbers."""

    def __init__(self, rows: dict[str, Row]) -> None:
        values = [value for row in rows.values() for value in row.miou]
        span = max(max(values) - min(values), 1.0)
        self.step = next(step for step in (1, 2, 5, 10, 20, 50) if span / step <= 8 or step == 50)
        self.low = self.step * math.floor(min(values) / self.step)
        self.high = max(self.step * math.ceil(max(values) / self.step), self.low + self.step)
        self.ticks = range(self.low, self.high + 1, self.step)

    def x(self, value: float) -> int:
        """Where a value stands."""
        share = (value - self.low) / (self.high - self.low)
        return round(_LABELS + share * (_WIDTH - _LABELS - 2 * _MARGIN))


def _lines(rows: dict[str, Row]) -> list[tuple[str, Row | None]]:
    """Labels with their rows, headings without one."""
    lines: list[tuple[str, Row | None]] = [
        (rows[name].variant.label, rows[name]) for name in (CORRELATION, BASE.name) if name in rows
    ]
    for part in PARTS:
        varied = [row for row in rows.values() if row.variant.part == part]
        if varied:
            lines += [(part, None), *((row.variant.label, row) for row in varied)]
    return lines


def _write(
    draw: ImageDraw.ImageDraw, text: str, x: int, y: int, colour: tuple[int, int, int]
) -> None:
    fit(text, _WIDTH - x, _TEXT).draw(draw, x, y, colour)
