"""The same panels as PNG, for slides and issues; the one module that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .bars import Bars
from .colours import LIGHT, PAPER, STAGE_LIGHT
from .grouping import shortened
from .panels import Axis, Panel
from .svg import spread, tick_text

__all__ = ["save_bars", "save_panels"]

_DPI: Final = 144
_MARKS: Final = ("o", "s", "^", "D", "x", "v", "o", "+", "s", "*")
_OPEN: Final = {6, 8}
_COLUMNS: Final = 3
_INK, _SOFT, _LINE = "#1b1f27", "#59606e", "#dcdfe6"
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "text.color": _INK,
}
_LONG: Final = 40  # characters of a label


def save_panels(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Draw lines or points, all panels in one picture.

    Args:
        panels: at least one.
        title: stands above all.
        path: ends in ``.png``; replaced.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _grid(len(panels), title, (5.2, 4.1))
        for panel, ax in zip(panels, axes, strict=True):
            _axis(ax, panel.x, "x")
            _axis(ax, panel.y, "y")
            ax.set_title(_heading(panel), loc="left", fontsize=9, color=_INK)
            _draw(ax, panel)
        figure.savefig(path, dpi=_DPI, facecolor=PAPER[0], format="png")


def save_bars(bars: Sequence[Bars], title: str, path: Path) -> None:
    """Draw stacked bars, each number of categories with a scale of its own."""
    with matplotlib.rc_context(_STYLE):
        most = max(sum(len(row.bars) + 1 for row in one.rows) for one in bars)
        figure, axes = _grid(len(bars), title, (6.2, 1.3 + 0.27 * most))
        for one, ax in zip(bars, axes, strict=True):
            _stack(ax, one, most)
            heading = f"{_short(one.model)}: {_short(one.machine.label, 60)}"
            ax.set_title(heading, loc="left", fontsize=9, color=_INK)
        handles = [
            matplotlib.patches.Patch(color=STAGE_LIGHT[index], label=_short(kind))
            for index, kind in enumerate(bars[0].kinds)
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=8, frameon=False)
        figure.savefig(path, dpi=_DPI, facecolor=PAPER[0], format="png")


def _grid(count: int, title: str, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _axis(ax: Axes, axis: Axis, which: str) -> None:
    getattr(ax, f"set_{which}scale")("log" if axis.log else "linear")
    getattr(ax, f"set_{which}lim")(axis.low, axis.high)
    getattr(ax, f"set_{which}label")(axis.label)
    side = getattr(ax, f"{which}axis")
    side.set_major_locator(FixedLocator(list(axis.ticks)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: tick_text(axis, value)))
    ax.grid(True, color=_LINE, linewidth=0.6)
    ax.set_axisbelow(True)


def _heading(panel: Panel) -> str:
    lines = [f"{_short(panel.model)}: {_short(panel.machine.label, 60)}"]
    return "\n".join([*lines, _short(panel.note, 70)] if panel.note else lines)


def _draw(ax: Axes, panel: Panel) -> None:
    """Lines end in their name; points have it beside them, one above the other if need be."""
    ends = [1 - panel.y.place(one.points[-1][1]) for one in panel.series]
    places = spread(ends, 0.0, 1.0, 0.047)
    for one, place in zip(panel.series, places, strict=True):
        colour = LIGHT[one.style]
        xs, ys = zip(*one.points, strict=True)
        ax.plot(
            xs,
            ys,
            marker=_MARKS[one.style],
            markersize=5,
            color=colour,
            linewidth=1.6 if panel.lines else 0,
            markerfacecolor=PAPER[0] if one.style in _OPEN else colour,
        )
        ax.annotate(
            _short(one.name),
            xy=(xs[-1], ys[-1]),
            xytext=(1.05, 1 - place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.7,
            },
        )


def _stack(ax: Axes, one: Bars, most: int) -> None:
    """``most`` are the lines of the longest: bars are equally thick in all."""
    at, places, names = 0.0, [], []
    for row in one.rows:
        longest = max(bar.total for bar in row.bars)
        ax.text(0, at, f"{row.categories} categories", color=_SOFT, va="center", fontsize=8)
        at += 1
        for bar in row.bars:
            left = 0.0
            for index, (_, spent) in enumerate(bar.parts):
                width = spent / longest
                ax.barh(at, width, 0.8, left=left, color=STAGE_LIGHT[index], linewidth=0)
                left += width
            ax.text(left + 0.012, at, _time(bar.total), va="center", fontsize=8)
            places.append(at)
            names.append(_short(bar.name))
            at += 1
    ax.set_yticks(places, names, fontsize=8, color=_INK)
    ax.set_ylim(most - 0.3, -0.7)
    ax.set_xlim(0, 1.22)
    ax.set_xticks([])
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.tick_params(length=0)


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.1f} ms"


def _short(name: str, most: int = _LONG) -> str:
    shown = "".join(one for one in name if one.isprintable())
    return shortened(shown, most)
