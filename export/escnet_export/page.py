"""``parity.html``: the accuracy of a bundle for people, in one self-contained page, no scripts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .page_html import STYLE, error_text, percent, text
from .page_picture import ParityPicture, picture_section
from .page_precision import precision_section

__all__ = ["parity_page"]

_PICTURES: Final = 4


def parity_page(report: Mapping[str, Any], pictures: Sequence[ParityPicture]) -> str:
    """The page as HTML.

    Args:
        report: ``ParityReport.to_dict()`` and ``model``, ``precision``, ``trained``, ``reason``.
        pictures: images to show; the first four are.

    Raises:
        KeyError: the report lacks a figure.
    """
    title = f"Parity of {report['model']} in {report['precision']}"
    parts = [
        _verdict(report),
        _compared(report),
        precision_section(report),
        _stages(report),
        _prompts(report),
        _pixels(report),
        *(picture_section(index, picture) for index, picture in enumerate(pictures[:_PICTURES])),
    ]
    # With this policy the browser itself refuses to load anything from outside the file.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{text(title)}</h1>
{"".join(parts)}
</body>
</html>
"""


def _verdict(report: Mapping[str, Any]) -> str:
    passed, budget = bool(report["passed"]), report["budget"]
    if report["gate"] == "pixels":
        found = (
            f"the {report['precision']} graphs label {percent(report['pixel_agreement'])} of all "
            f"pixels as float32 torch does; the budget is at least "
            f"{percent(budget['pixel_agreement'])}"
        )
        why = "The weights are trained, so equal pixels are the gate."
    else:
        stages = report["stages"]
        worst = max(stages, key=lambda name: _rank(stages[name]["relative_l2"]))
        found = (
            f"the worst stage is {worst}: relative L2 {error_text(stages[worst]['relative_l2'])} "
            f"to float32 torch; the budget is at most {error_text(budget['stage_l2'])}"
        )
        why = (
            "The weights are not trained. Their labels are mostly near-ties, which say nothing "
            "about the graphs, so the stages are the gate."
        )
    word, tone = ("Passed", "good") if passed else ("Failed", "bad")
    # The gate's own figure may hold while another part of the budget is missed.
    missed = "" if passed else f"<p>Missed: {text(report['reason'])}.</p>"
    return (
        f'<div class="verdict {tone}"><strong>{word}</strong>'
        f"<p>{text(found[0].upper() + found[1:])}.</p>{missed}"
        f'<p class="soft">{text(why)}</p></div>'
    )


def _rank(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _compared(report: Mapping[str, Any]) -> str:
    kept = report["kept_in_fp32"]
    return (
        "<h2>What was compared</h2>"
        + _cards(
            {
                "Model": report["model"],
                "Weights": "trained" if report["trained"] else "untrained",
                "Precision of the graphs": report["precision"],
                "Reference": "float32 torch",
                "Images": report["images"],
                "Categories": report["categories"],
            }
        )
        + (f"<p>Kept in fp32: {text(', '.join(kept))}.</p>" if kept else "")
    )


def _cards(figures: Mapping[str, object]) -> str:
    cards = (f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in figures.items())
    return f"<dl>{''.join(cards)}</dl>"


def _stages(report: Mapping[str, Any]) -> str:
    stages, budget = report["stages"], float(report["budget"]["stage_l2"])
    values = (budget, *(error["relative_l2"] for error in stages.values()))
    shown = [value for value in values if 0 < value < math.inf] or [1.0]  # a budget may be 0
    low = math.floor(math.log10(min(shown))) - 1
    high = math.ceil(math.log10(max(shown)) + 0.2)

    def place(value: float) -> float:
        """Position of ``value`` on the logarithmic bar, in percent of its length."""
        if not math.isfinite(value):
            return 100.0
        if value <= 0:
            return 0.0
        return min(max((math.log10(value) - low) / (high - low), 0.0), 1.0) * 100

    rows = []
    for name in sorted(stages, key="text_encoder".__ne__):  # measured last, but runs first
        error = stages[name]
        value = error["relative_l2"]
        over = not value <= budget
        rows.append(
            f"<tr><td>{text(name)}</td><td{' class=bad' if over else ''}>{error_text(value)}</td>"
            f'<td class="low">{_cosine(error["cosine"])}</td><td class="chart"><div class="bar">'
            f'<i{" class=over" if over else ""} style="width:{place(value):.1f}%"></i>'
            f'<b style="left:{place(budget):.1f}%"></b></div></td></tr>'
        )
    return (
        "<h2>Stages</h2><p>Each stage was given torch's inputs, so its error is its own. Shown is "
        "the worst output over all images, on a logarithmic scale; the dashed line is the budget, "
        f"{error_text(budget)}{_aside(report, 'stages')}.</p>"
        '<table><thead><tr><th>Stage</th><th>Relative L2</th><th class="low">Cosine</th>'
        f'<th class="chart"><span class="scale"><span>1e{low}</span><span>1e{high}</span></span>'
        f"</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _aside(report: Mapping[str, Any], gate: str) -> str:
    decides = gate == report["gate"] or gate in report["budget"]["asked"]
    return "" if decides else " (does not decide here)"


def _cosine(value: float) -> str:
    """Rounded down, so that 0.999999999 does not read as 1."""
    return "1" if value >= 1 else f"{math.floor(value * 1e8) / 1e8:.8f}"


def _prompts(report: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{index}</td><td>{text(block['flips'])}</td><td>{text(block['prompts'])}</td>"
        f"<td>{percent(block['flips'] / block['prompts'] if block['prompts'] else 0.0)}</td></tr>"
        for index, block in enumerate(report["blocks"])
    )
    most = report["budget"]["prompt_flips"]
    budget = "" if most is None else f"; the budget is at most {most:.2%}"
    return (
        "<h2>Prompts</h2><p>A prompt has flipped if its point differs from torch's, or if only one "
        "of the two uses it. Here the graphs run freely: a flip in one block changes the next. "
        f"{text(report['prompt_flips'])} of {text(report['prompts'])} flipped{budget}.</p>"
        "<table><thead><tr><th>Block</th><th>Flipped</th><th>Prompts</th><th>Share</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _pixels(report: Mapping[str, Any]) -> str:
    return (
        "<h2>Pixels</h2><p>Labels at the model's input size. At a near-tie the two best "
        "categories are so close that rounding decides, not the model.</p>"
    ) + _cards(
        {
            "Equal labels": percent(report["pixel_agreement"]),
            "Budget": f"at least {percent(report['budget']['pixel_agreement'])}"
            + _aside(report, "pixels"),
            "Near-ties": percent(report["near_ties"]),
            "Equal without near-ties": percent(report["agreement_without_ties"]),
            "Pixels": f"{report['pixels']:,}",
        }
    )
