"""Panels as inline SVG: no script, colours by CSS, so that light and dark mode each have theirs."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from .grouping import shortened
from .panels import Axis, Panel, Series
from .texts import text

__all__ = ["panel_svg", "spread", "tick_text"]

# In units of the drawing, which is shown at about one unit a pixel, on a phone too.
_WIDTH: Final = 348
_HEIGHT: Final = 264
_TOP, _BOTTOM = 22, 34
_RIGHT_LEAST: Final = 14
_CHARACTER: Final = 6.1  # of a label, at 10.5 px
_LABEL_MOST: Final = 184
_LINE: Final = 13  # between labels
_GAP: Final = 13  # from the last point to its label
_R: Final = 3.6


def panel_svg(panel: Panel, title: str) -> str:
    """A chart with axes, lines or points, and a label at each.

    Args:
        panel: what to draw.
        title: says in words what the picture shows, for those who do not see it.
    """
    longest = max(len(one.name) for one in panel.series)
    right = min(_LABEL_MOST, longest * _CHARACTER + _GAP + 4) if panel.lines else _RIGHT_LEAST
    height = max(_HEIGHT, _TOP + _BOTTOM + _LINE * len(panel.series))
    left = 9 + _CHARACTER * max(len(tick_text(panel.y, tick)) for tick in panel.y.ticks)
    box = _Box(left, _TOP, _WIDTH - right, height - _BOTTOM)
    parts = [_grid(panel.x, panel.y, box)]
    room = int((right - _GAP) / _CHARACTER)
    parts.append(_lines(panel, box, room) if panel.lines else _points(panel, box))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text(title)}">'
        f"{''.join(parts)}</svg>"
    )


class _Box:
    """The area between the axes, in units of the drawing."""

    def __init__(self, left: float, top: float, right: float, bottom: float) -> None:
        self.left, self.top, self.right, self.bottom = left, top, right, bottom

    def x(self, axis: Axis, value: float) -> float:
        return self.left + axis.place(value) * (self.right - self.left)

    def y(self, axis: Axis, value: float) -> float:
        return self.bottom - axis.place(value) * (self.bottom - self.top)


def tick_text(axis: Axis, value: float) -> str:
    """A number at an axis: 850, 12k, 81.2 %."""
    if axis.percent:
        digits = max(0, math.ceil(-math.log10(axis.high - axis.low + 1e-12) - 1.0))
        return f"{100 * value:.{digits}f} %"
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _grid(x: Axis, y: Axis, box: _Box) -> str:
    parts = []
    for tick in y.ticks:
        at = box.y(y, tick)
        parts.append(f'<path class="grid" d="M{box.left:.1f} {at:.1f}H{box.right:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{box.left - 5:.1f}" y="{at + 3.5:.1f}" text-anchor="end">'
            f"{tick_text(y, tick)}</text>"
        )
    last = -100.0
    for tick in x.ticks:
        at, number = box.x(x, tick), tick_text(x, tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {box.top:.1f}V{box.bottom:.1f}"/>')
        if at - last >= 4 + _CHARACTER * len(number):  # else they would run into each other
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{box.bottom + 13:.1f}" text-anchor="middle">'
                f"{number}</text>"
            )
            last = at
    middle = (box.left + box.right) / 2
    parts.append(
        f'<path class="axis" d="M{box.left:.1f} {box.top:.1f}V{box.bottom:.1f}H{box.right:.1f}"/>'
        f'<text class="name" x="{middle:.1f}" y="{box.bottom + 28:.1f}" text-anchor="middle">'
        f"{text(x.label)}</text>"
        f'<text class="name" x="2" y="{box.top - 10:.1f}">{text(y.label)}</text>'
    )
    return "".join(parts)


def _lines(panel: Panel, box: _Box, room: int) -> str:
    ends = [(box.y(panel.y, one.points[-1][1]), one) for one in panel.series]
    places = spread([y for y, _ in ends], box.top + 2, box.bottom, _LINE)
    parts = []
    for (end, one), place in zip(ends, places, strict=True):
        points = [(box.x(panel.x, x), box.y(panel.y, y)) for x, y in one.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        marks = "".join(
            mark(one.style, x, y, _said(panel, one, value))
            for (x, y), value in zip(points, one.points, strict=True)
        )
        start = points[-1][0] + 5
        label = box.right + _GAP - 3
        parts.append(
            f'<g class="c{one.style}"><path class="line" d="M{path}"/>'
            f'<path class="leader" d="M{start:.1f} {end:.1f}L{label - 3:.1f} {place:.1f}"/>{marks}'
            f'<text class="label" x="{label:.1f}" y="{place + 3.6:.1f}">'
            f"{_short(one.name, room)}</text></g>"
        )
    return "".join(parts)


def _points(panel: Panel, box: _Box) -> str:
    """Points, each with its label at the side where there is room, moved off the others."""
    marks = [(box.x(panel.x, x), box.y(panel.y, y)) for one in panel.series for x, y in one.points]
    placed = [(x - _R, x + _R, y) for x, y in marks]
    parts = []
    for one in sorted(panel.series, key=lambda one: one.points[0][1]):
        x, y = box.x(panel.x, one.points[0][0]), box.y(panel.y, one.points[0][1])
        rights, lefts = _WIDTH - 4 - x - 8, x - 8 - box.left
        left = len(one.name) * _CHARACTER > rights and lefts > rights
        room = max(int((lefts if left else rights) / _CHARACTER), 1)
        name = _short(one.name, room)
        width = min(len(one.name), room) * _CHARACTER
        start = x - 8 - width if left else x + 8
        offsets = sorted(range(-400, 401, 2), key=abs)
        free = (
            y + off
            for off in offsets
            if box.top + 4 <= y + off <= box.bottom - 4
            and not any(
                abs(y + off - other) < _LINE - 2 and start < end and begin < start + width
                for begin, end, other in placed
            )
        )
        at = next(free, y)
        placed.append((start, start + width, at))
        anchor = ' text-anchor="end"' if left else ""
        leader = ""
        if abs(at - y) > 4:
            near = start + width + 2 if left else start - 2
            leader = f'<path class="leader" d="M{x:.1f} {y:.1f}L{near:.1f} {at:.1f}"/>'
        parts.append(
            f'<g class="c{one.style}">{leader}'
            f"{mark(one.style, x, y, _said(panel, one, one.points[0]))}"
            f'<text class="label" x="{x - 8 if left else start:.1f}" y="{at + 3.6:.1f}"{anchor}>'
            f"{name}</text></g>"
        )
    return "".join(parts)


def spread(wanted: Sequence[float], top: float, bottom: float, gap: float) -> list[float]:
    """Heights of labels near those wanted, ``gap`` apart, between top and bottom if they fit."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    places = [0.0] * len(wanted)
    floor = top
    for index in order:
        places[index] = max(wanted[index], floor)
        floor = places[index] + gap
    ceiling = bottom
    for index in reversed(order):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


def _said(panel: Panel, one: Series, value: tuple[float, float]) -> str:
    """What a pointer over a mark reads."""
    x, y = value
    unit = f"{100 * y:.3f} %" if panel.y.percent else f"{y:,.4g}"
    return f"{one.name}: {x:,.4g} {panel.x.label}, {unit} ({panel.y.label})"


def mark(style: int, x: float, y: float, title: str) -> str:
    """The shape of a style around a point."""
    return f'<g class="mark"><title>{text(title)}</title>{_SHAPES[style](x, y)}</g>'


def _circle(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_R}"/>'


def _ring(x: float, y: float) -> str:
    return f'<circle class="open" cx="{x:.1f}" cy="{y:.1f}" r="{_R}"/>'


def _polygon(*corners: tuple[float, float], open_: bool = False) -> Callable[[float, float], str]:
    def draw(x: float, y: float) -> str:
        path = "L".join(f"{x + _R * u:.1f} {y + _R * v:.1f}" for u, v in corners)
        kind = ' class="open"' if open_ else ""
        return f'<path{kind} d="M{path}Z"/>'

    return draw


def _strokes(*pieces: str) -> Callable[[float, float], str]:
    return lambda x, y: (
        f'<path class="stroke" transform="translate({x:.1f} {y:.1f})" d="{"".join(pieces)}"/>'
    )


_SQUARE: Final = ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
#: In the order of colours.MARKS.
_SHAPES: Final[tuple[Callable[[float, float], str], ...]] = (
    _circle,
    _polygon(*_SQUARE),
    _polygon((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    _polygon((0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)),
    _strokes("M-3-3L3 3", "M-3 3L3-3"),
    _polygon((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    _ring,
    _strokes("M-4 0H4", "M0-4V4"),
    _polygon(*_SQUARE, open_=True),
    _strokes("M-3.5 0H3.5", "M-2-3L2 3", "M-2 3L2-3"),
)


def _short(name: str, room: int) -> str:
    return text(shortened(name, room))
