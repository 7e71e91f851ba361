"""Pieces of HTML. Every text from a file passes through :func:`text`."""

from collections.abc import Sequence
from typing import Final

from .bars import Bar, Bars
from .panels import Panel
from .svg import panel_svg
from .texts import text

__all__ = ["box", "figure", "missing", "stacked", "table"]

_RAIL: Final = 300  # px of the longest bar and its total on a phone, and of a letter
_LETTER: Final = 5.9
_FULL: Final = 74  # % of the rail for the longest bar: the total stands behind it
_LONG: Final = 160  # characters


def box(value: object, tag: str = "td", kind: str = "", *, small: str = "") -> str:
    """A cell of a table; None is shown as not measured."""
    if value is None:
        return f'<{tag} class="none {kind}" title="not measured">—</{tag}>'
    note = f"<small>{text(small)}</small>" if small else ""
    return f'<{tag} class="{kind}">{text(value)}{note}</{tag}>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table in a box of its own, which scrolls; ``left`` columns are words."""
    kinds = ["left" if i < left or name == "file" else "" for i, name in enumerate(head)]
    heads = "".join(
        f'<th scope="col" class="{kind}">{text(name)}</th>'
        for kind, name in zip(kinds, head, strict=True)
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(head[0])}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def missing(what: str, command: str, more: str = "") -> str:
    """Says that there is no measurement, and how to make one."""
    tail = f" {text(more)}" if more else ""
    return (
        f'<p class="missing">{text(what)} It is measured by <code>{text(command)}</code>{tail}.</p>'
    )


def figure(panel: Panel) -> str:
    """A chart with its caption."""
    title = f"{panel.y.label} by {panel.x.label}, {panel.model} on {panel.machine.label}"
    note = f"<span>{text(panel.note)}</span>" if panel.note else ""
    return (
        f"<figure><figcaption>{text(panel.machine.name)}<span>{text(panel.machine.day)}</span>"
        f"{note}</figcaption>{panel_svg(panel, title)}</figure>"
    )


def stacked(bars: Bars) -> str:
    """Stacked bars of a model on a machine, with a key: some parts are too thin for their name."""
    key = "".join(
        f'<li class="s{index}"><i></i>{text(kind)}</li>' for index, kind in enumerate(bars.kinds)
    )
    rows = []
    for row in bars.rows:
        rows.append(f'<p class="count">{row.categories} categories</p>')
        longest = max(bar.total for bar in row.bars)
        rows += [_bar(bar, longest) for bar in row.bars]
    return (
        f"<figure><figcaption>{text(bars.model)}<span>{text(bars.machine.label)}</span>"
        f'</figcaption><ul class="key">{key}</ul>{"".join(rows)}</figure>'
    )


def _bar(bar: Bar, longest: float) -> str:
    width = _FULL * bar.total / longest
    parts = []
    for index, (kind, spent) in enumerate(bar.parts):
        if not spent:
            continue
        share = spent / bar.total
        said = f"{kind}: {_time(spent)}, {share:.1%}"
        named = share * width / 100 * _RAIL >= len(kind) * _LETTER + 6
        parts.append(
            f'<i class="s{index}{"" if named else " thin"}" style="flex:{share:.5f} 1 0" '
            f'title="{text(said)}">{text(kind) if named else ""}</i>'
        )
    return (
        f'<div class="bar">{text(bar.name[:_LONG])}<div class="rail">'
        f'<div class="track" style="width:{width:.2f}%">{"".join(parts)}</div>'
        f"<b>{_time(bar.total)}</b></div></div>"
    )


def _time(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.1f} ms" if milliseconds >= 10 else f"{milliseconds:.2f} ms"
