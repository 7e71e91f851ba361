"""Shared by all parts of ``parity.html``: its style sheet, and the formatting of figures."""

import html
import math
from typing import Final

__all__ = ["STYLE", "error_text", "percent", "text"]

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #59606e; --paper: #fff; --card: #f4f5f8;
  --line: #d9dce3; --good: #14713d; --bad: #b3152f; --bar: #3d6fd6; --mark: #1b1f27; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ee; --soft: #a2a9b8; --paper: #14161b;
  --card: #1d2027; --line: #343945; --good: #5fce8f; --bad: #ff8095; --bar: #7ba2f5;
  --mark: #e6e8ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 3rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; } p { margin: .4rem 0; max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; }
.verdict { background: var(--card); border-left: .4rem solid; border-radius: .3rem;
  padding: .8rem 1rem; }
.verdict strong { font-size: 1.1rem; } .verdict p { color: var(--ink); }
.good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 0; }
dl div { background: var(--card); border-radius: .3rem; padding: .5rem .7rem; }
dt { color: var(--soft); font-size: .82rem; } dd { margin: 0; font-weight: 600;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-size: .82rem; font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.chart { width: 45%; min-width: 5.5rem; padding-right: 0; } td.bad { font-weight: 600; }
.scale { display: flex; justify-content: space-between; }
.bar { position: relative; height: 1rem; background: var(--card); border-radius: 2px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: 2px; }
.bar i.over { background: var(--bad); }
.bar b { position: absolute; top: -.25rem; bottom: -.25rem; border-left: 2px dashed var(--mark); }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 46%), 1fr));
  gap: .7rem; }
.pair { grid-column: span 2; display: grid; grid-template-columns: 1fr 1fr; gap: .7rem; }
figure { margin: 0; } figure img, figure svg { background: var(--card); }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .2rem; }
figure img, figure svg { display: block; width: 100%; height: auto; border-radius: .3rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem .9rem; padding: 0; margin: .5rem 0 0;
  list-style: none; font-size: .85rem; }
.flips { width: auto; margin-top: .6rem; } .flips th, .flips td { text-align: left;
  padding-right: 1.2rem; white-space: normal; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .35em; border: 1px solid var(--line); }
@media (max-width: 34rem) { body { padding: 1rem .7rem 2rem; } table { font-size: .82rem; }
  th, td { padding: .3rem .25rem; } .low { display: none; } }
"""


def text(value: object) -> str:
    """A value as escaped HTML text."""
    return html.escape(str(value), quote=True)


def percent(share: float) -> str:
    """A share in percent, rounded down: a miss never reads as the budget, nor 0.999999 as 100 %."""
    return f"{math.floor(share * 1e5 + 1e-7) / 1e3:.3f} %" if math.isfinite(share) else "none"


def error_text(value: float) -> str:
    """A relative L2, to two digits."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.1e}" if value else "0"
