"""How the page looks: light and dark, from a phone to a wide screen."""

from typing import Final

from .colours import DARK, LIGHT, PAPER, STAGE_DARK, STAGE_LIGHT

__all__ = ["style"]

_LAYOUT: Final = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .6rem; }
h3.part { font-size: 1.08rem; margin-bottom: -.6rem; }
p { margin: .3rem 0 .7rem; max-width: 46rem; } .soft { color: var(--soft); font-size: .9rem; }
a { color: inherit; } nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
code { font: .92em ui-monospace, monospace; background: var(--card); border-radius: .2rem;
  padding: .05rem .25rem; }
.cards, .panels { display: grid; gap: 1rem; margin: .8rem 0; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.panels { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.card { background: var(--card); border-radius: .5rem; padding: .8rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.card span { display: block; color: var(--soft); font-size: .88rem; }
.card .who { color: var(--ink); font-weight: 600; font-size: .95rem; }
figure { margin: 0; min-width: 0; background: var(--card); border-radius: .5rem;
  padding: .7rem .6rem .5rem; }
figcaption { font-size: .9rem; font-weight: 600; line-height: 1.35; margin: 0 .3rem .3rem; }
figcaption span { display: block; color: var(--soft); font-weight: 400; font-size: .82rem; }
svg { display: block; width: 100%; max-width: 28rem; height: auto; margin: 0 auto; }
svg text { font: 10.5px system-ui, sans-serif; fill: var(--soft); }
svg .label { fill: var(--ink); } svg .name { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.9; stroke-linejoin: round; }
svg .leader { fill: none; stroke: var(--c); stroke-width: .8; opacity: .65; }
svg .mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }
svg .mark .open { fill: var(--card); stroke: var(--c); stroke-width: 1.8; }
svg .mark .stroke { fill: none; stroke: var(--c); stroke-width: 2; }
.wide { align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.key { display: flex; flex-wrap: wrap; gap: .1rem .8rem; list-style: none; margin: .2rem .3rem;
  padding: 0; font-size: .8rem; color: var(--soft); }
.key i { display: inline-block; width: .75em; height: .75em; border-radius: 2px;
  margin-right: .35em; background: var(--s); }
.count { font-size: .82rem; color: var(--soft); margin: .6rem .3rem .1rem; }
.bar { margin: .15rem .3rem .4rem; font-size: .82rem; line-height: 1.3; }
.bar > div { display: flex; align-items: center; gap: .5rem; }
.bar .track { display: flex; gap: 1px; height: 1.25rem; min-width: 3px; border-radius: 3px;
  overflow: hidden; flex: none; }
.bar .track i { background: var(--s); color: var(--on); font-style: normal; font-size: .7rem;
  line-height: 1.25rem; padding-left: .25rem; white-space: nowrap; overflow: hidden;
  min-width: 0; }
.bar .track i.thin { padding: 0; } .bar b { font-weight: 600; white-space: nowrap; }
.rail { flex: 1 1 auto; min-width: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0;
  max-width: 100%; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .35rem .65rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; font-size: .82rem; }
.left { text-align: left; } .wrap { white-space: normal; min-width: 16rem; }
tbody th { color: var(--ink); font-size: .87rem; }
.best { font-weight: 700; } td small { color: var(--soft); display: block;
  white-space: normal; }
.none { color: var(--soft); }
.missing { background: var(--card); border-left: .3rem solid var(--line); border-radius: .3rem;
  padding: .6rem .8rem; margin: .5rem 0; max-width: 46rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: minmax(6rem, 11rem) 1fr; gap: .2rem .8rem;
  font-size: .87rem; margin: .5rem 0; } dt { color: var(--soft); } dd { margin: 0; }
@media (max-width: 30rem) { th, td { padding: .3rem .45rem; }
  tbody th { white-space: normal; max-width: 8.5rem; min-width: 6.3rem;
  overflow-wrap: normal; }
  body { padding: 1rem .75rem 3rem; font-size: 15px; }
  h1 { font-size: 1.35rem; } figure { padding: .6rem .25rem .4rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .3rem; } }
@media print { body { max-width: none; } figure, .card { break-inside: avoid; } }
"""


def style() -> str:
    """The style sheet."""
    light = _colours(PAPER[0], "#1b1f27", "#59606e", "#f5f6f9", "#dcdfe6", LIGHT, STAGE_LIGHT)
    dark = _colours(PAPER[1], "#e8eaf0", "#a3aab9", "#1d2027", "#363b47", DARK, STAGE_DARK)
    uses = "".join(f".c{i} {{ --c: var(--c{i}); }}\n" for i in range(len(LIGHT)))
    uses += "".join(
        f".s{i} {{ --s: var(--s{i}); --on: var(--on{i}); }}\n" for i in range(len(STAGE_LIGHT))
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{uses}{_LAYOUT}"
    )


def _colours(
    paper: str,
    ink: str,
    soft: str,
    card: str,
    line: str,
    series: tuple[str, ...],
    stages: tuple[str, ...],
) -> str:
    values = {"paper": paper, "ink": ink, "soft": soft, "card": card, "line": line}
    values |= {f"c{i}": colour for i, colour in enumerate(series)}
    values |= {f"s{i}": colour for i, colour in enumerate(stages)}
    values |= {f"on{i}": _on(colour) for i, colour in enumerate(stages)}
    return " ".join(f"--{name}: {value};" for name, value in values.items())


def _on(colour: str) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#111" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "#fff"
