"""The part of ``parity.html`` about blocks kept at a higher precision and about large values."""

import math
from collections.abc import Mapping
from typing import Any, Final

from .page_html import text
from .ranges import FLOAT16_LIMIT

__all__ = ["precision_section"]

_SHOWN: Final = 12  # most tensors near the limit that are listed


def precision_section(report: Mapping[str, Any]) -> str:
    """The part as HTML; empty without labels, kept blocks and large values.

    Args:
        report: see :func:`escnet_export.page.parity_page`.
    """
    return _labels(report) + _kept(report) + _traps(report)


def _labels(report: Mapping[str, Any]) -> str:
    typed, reference = report.get("miou"), report.get("reference_miou")
    if typed is None or reference is None:
        return ""
    return (
        f"<h2>Labels</h2><p>The images have labels. mIoU is {typed:.2%}, that of float32 torch "
        f"{reference:.2%}; the budget is at most {report['budget']['miou_loss']:.2%} less.</p>"
    )


def _kept(report: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{text(kept['block'])}</td><td>{text(kept['precision'])}</td>"
        f"<td>{kept['bytes'] / 1e6:+.2f} MB</td><td>{_milliseconds(kept)}</td></tr>"
        f'<tr><td colspan="4" class="soft" style="white-space: normal">{text(kept["why"])}</td>'
        "</tr>"
        for kept in report["kept_higher"]
    )
    if not rows:
        return ""
    return (
        "<h2>Kept higher</h2><p>Blocks that the accuracy gate raised above "
        f"{text(report['precision'])}, and what each costs: size of the file, and time of a run "
        "on ONNX Runtime's CPU provider, on the machine that exported (below 0: faster).</p>"
        "<table><thead><tr><th>Block</th><th>Precision</th><th>Size</th><th>Time</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _milliseconds(kept: Mapping[str, Any]) -> str:
    if kept["milliseconds"] is None:
        return "not measured"
    shared = "" if kept["timed"] == kept["block"] else f" (all of {text(kept['timed'])})"
    return f"{kept['milliseconds']:+.2f} ms{shared}"


def _traps(report: Mapping[str, Any]) -> str:
    traps = sorted(report["traps"], key=lambda trap: -_size(trap["largest"]))
    if not traps:
        return ""
    rows = "".join(
        f"<tr><td>{text(trap['block'])}</td><td>{text(trap['tensor'])}</td>"
        f"<td>{text(trap['op'])}</td><td{' class=bad' if _beyond(trap) else ''}>"
        f"{_number(trap['largest'])}</td></tr>"
        for trap in traps[:_SHOWN]
    )
    more = len(traps) - _SHOWN
    return (
        "<h2>Large values</h2><p>Tensors that were float16 when their graph was first exported, "
        "and whose largest value on these images is above a tenth of float16's limit, "
        f"{FLOAT16_LIMIT:,.0f}. Beyond that limit a device computes an infinity.</p>"
        "<table><thead><tr><th>Block</th><th>Tensor</th><th>Operator</th><th>Largest</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
        + (f'<p class="soft">and {more} more, in parity.json.</p>' if more > 0 else "")
    )


def _beyond(trap: Mapping[str, Any]) -> bool:
    return _size(trap["largest"]) > FLOAT16_LIMIT


def _size(value: float | None) -> float:
    return math.inf if value is None else value


def _number(value: float | None) -> str:
    size = _size(value)
    return f"{size:,.0f}" if math.isfinite(size) else "infinite"
