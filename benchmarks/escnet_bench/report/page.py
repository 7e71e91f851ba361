"""The report as one HTML page: no scripts, no other files, nothing is fetched."""

from collections.abc import Sequence
from dataclasses import dataclass

from escnet_runtime import __version__

from .bars import stage_bars
from .facts import Machine, Result
from .fragments import box, figure, missing, stacked, table
from .lines import latency_panels, memory_panels, styles_of
from .page_tables import (
    accuracy_table,
    conditions_of,
    files_table,
    left_out_table,
    machines_table,
    operations_table,
    ratio_table,
    stages_table,
    times_table,
)
from .panels import Panel
from .points import accuracy_panels, same_panels
from .style import style
from .tables import ratio_tables
from .texts import text

__all__ = ["Sections", "report_page"]

_HOW = "How to measure your own machine and where to send it: docs/benchmarks-report.md."


@dataclass(frozen=True, slots=True)
class Sections:
    """The panels of all charts, which are also drawn as plots."""

    latency: list[Panel]
    memory: list[Panel]
    device_memory: list[Panel]
    miou: list[Panel]
    agreement: list[Panel]
    same: list[Panel]

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Sections":
        """All panels of all files."""
        styles = styles_of(results)
        memory, device = memory_panels(results, styles)
        miou, agreement = accuracy_panels(results, styles)
        return cls(
            latency=latency_panels(results, styles),
            memory=memory,
            device_memory=device,
            miou=miou,
            agreement=agreement,
            same=same_panels(results, styles),
        )


def report_page(results: Sequence[Result], *, baseline: str | None = None) -> str:
    """The page.

    Args:
        results: as read from their files.
        baseline: the implementation that others are compared with; eager PyTorch by default.
    """
    sections = Sections.of(results)
    machines = list(dict.fromkeys(one.machine for one in results if one.unused is None))
    parts = [
        _head(results, machines),
        _glance(results, baseline),
        _latency(results, sections, baseline),
        _stages(results),
        _accuracy(results, sections),
        _memory(sections),
        _operations(results),
        _left_out(results),
        _machines(results),
    ]
    # With this policy the browser itself refuses to load anything from outside the file.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ESC-Net: measured</title>
<style>{style()}</style>
</head>
<body>
{"".join(parts)}
</body>
</html>
"""


def _head(results: Sequence[Result], machines: Sequence[Machine]) -> str:
    used = sum(one.unused is None for one in results)
    names = list(dict.fromkeys(machine.name for machine in machines))
    links = "".join(
        f'<a href="#{key}">{name}</a>'
        for key, name in (
            ("latency", "Latency"),
            ("stages", "Where the time goes"),
            ("accuracy", "Accuracy"),
            ("memory", "Memory"),
            ("operations", "Operations"),
            ("left-out", "Left out"),
            ("machines", "Machines and files"),
        )
    )
    files = _number(used, "result file")
    if used < len(results):
        files = f"{used} of {len(results)} result files"
    return (
        "<header><h1>ESC-Net, measured</h1>"
        f"<p>{text(_listed(names))}: what {files} {'says' if used == 1 else 'say'}, put together "
        f"by escnet-bench {text(__version__)}. "
        "Every figure is of a machine, a day and a file, which stand beside it or in the table "
        f'at the end.</p><p class="soft">{_HOW}</p><nav>{links}</nav></header>'
    )


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _glance(results: Sequence[Result], baseline: str | None) -> str:
    """A card for each model and machine: the fastest implementation, where most was measured."""
    cards = []
    for one in ratio_tables(results, baseline):
        column = _telling(one.rows, len(one.categories))
        name, speed, times = min(
            (row for row in one.rows if row[2][column] is not None),
            key=lambda row: row[2][column] or 0.0,
        )
        faster = speed[column]
        others = sum(row[2][column] is not None for row in one.rows) - 1
        said = f"the fastest of {others + 1}" if others else "nothing else was measured here"
        if (
            faster is not None
            and one.baseline is not None
            and not name.startswith(f"{one.baseline} ")
        ):
            said = f"{faster:.2f} × as fast as {one.baseline}"
        cards.append(
            f'<div class="card"><span class="who">{text(one.model)}, '
            f"{one.categories[column]} categories</span><b>{_milliseconds(times[column])}</b>"
            f"<span>{text(name)}; {text(said)}</span>"
            f"<span>{text(one.machine.label)}</span></div>"
        )
    if not cards:
        return ""
    return f'<h2 id="glance">At a glance: the fastest</h2><div class="cards">{"".join(cards)}</div>'


def _telling(
    rows: Sequence[tuple[str, tuple[float | None, ...], tuple[float | None, ...]]], columns: int
) -> int:
    """The column with most entries, 150 categories or so if there are several."""
    filled = [sum(row[2][column] is not None for row in rows) for column in range(columns)]
    best = [column for column in range(columns) if filled[column] == max(filled)]
    return best[len(best) // 2]


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.1f} ms"


def _latency(results: Sequence[Result], sections: Sections, baseline: str | None) -> str:
    parts = ['<h2 id="latency">Latency by number of categories</h2>']
    if not sections.latency:
        return parts[0] + missing("No file has a time.", "escnet-bench latency --output FILE")
    parts.append(
        "<p>From a picture in memory to a label map in memory, median of the calls. Both axes are "
        "logarithmic; machines of one model share them, so that panels side by side compare.</p>"
    )
    parts.append(_panels(sections.latency))
    parts.append(
        "<h3>How many times as fast as the baseline</h3><p>Above 1 is faster. Where a file has "
        "ratios of single rounds, the median of those stands here: it holds where the speed of "
        "the machine moved. The time is below the ratio.</p>"
    )
    parts += [ratio_table(one) for one in ratio_tables(results, baseline)]
    parts.append(
        f"<details><summary>Every time, with percentiles, first call and energy</summary>"
        f"{times_table(results)}</details>"
    )
    return "".join(parts)


def _panels(panels: Sequence[Panel]) -> str:
    """Under a heading for each model."""
    parts = []
    for model in dict.fromkeys(panel.model for panel in panels):
        figures = "".join(figure(panel) for panel in panels if panel.model == model)
        parts.append(f'<h3>{text(model)}</h3><div class="panels">{figures}</div>')
    return "".join(parts)


def _stages(results: Sequence[Result]) -> str:
    bars = stage_bars(results)
    title = '<h2 id="stages">Where the time goes</h2>'
    if not bars:
        return title + missing("No file has times by stage.", "escnet-bench latency --output FILE")
    intro = (
        "<p>Milliseconds of an image by stage, blocks added up. Bars of one number of categories "
        "share a scale; each number has its own.</p>"
    )
    return title + intro + f'<div class="panels wide">{"".join(map(stacked, bars))}</div>'


def _accuracy(results: Sequence[Result], sections: Sections) -> str:
    parts = ['<h2 id="accuracy">Accuracy against latency</h2>']
    rows = [one for result in results for one in result.accuracies]
    command = "escnet-bench parity --bundle BUNDLE --output FILE"
    if not rows:
        parts.append(missing("No file says how right the masks are.", command))
    elif not (sections.miou or sections.agreement):
        what = "No bundle has both a time and an accuracy in these files."
        parts.append(missing(what, command, "of the bundle that was timed"))
    if sections.miou or sections.agreement or sections.same:
        parts.append(
            "<p>Of the bundle that was timed, known by its hash, or timed in the same file. Up and "
            "to the left is better. The axis of accuracy shows the range that occurs, not zero.</p>"
        )
    for title, panels in (
        ("mIoU", sections.miou),
        ("Labels as in float32 PyTorch", sections.agreement),
        ("Labels as ours", sections.same),
    ):
        if panels:
            parts.append(f'<h3 class="part">{title}</h3>{_panels(panels)}')
    if rows:
        parts += ["<h3>All figures</h3>", accuracy_table(rows)]
    if any(one.stages for one in rows):
        summary = "Each stage against float32 PyTorch (relative L2)"
        parts.append(f"<details><summary>{summary}</summary>{stages_table(rows)}</details>")
    return "".join(parts)


def _memory(sections: Sections) -> str:
    parts = ['<h2 id="memory">Memory by number of categories</h2>']
    if not (sections.memory or sections.device_memory):
        return parts[0] + missing("No file has memory.", "escnet-bench latency --output FILE")
    if sections.memory:
        parts.append("<p>Peak resident memory of a process that does this alone.</p>")
        parts.append(_panels(sections.memory))
    if sections.device_memory:
        parts.append("<h3>On the GPU</h3>")
        parts.append(_panels(sections.device_memory))
    else:
        parts.append('<p class="soft">Memory of a GPU is in no file.</p>')
    return "".join(parts)


def _operations(results: Sequence[Result]) -> str:
    title = '<h2 id="operations">Operations of one image</h2>'
    if not any(result.operations for result in results):
        return title + missing(
            "No file counts operations.", "escnet-bench gflop --preset NAME --output FILE"
        )
    return title + operations_table(results)


def _left_out(results: Sequence[Result]) -> str:
    title = '<h2 id="left-out">What was left out, and why</h2>'
    if not any(result.left_out for result in results):
        return f'{title}<p class="soft">No file names anything that it left out.</p>'
    return title + left_out_table(results)


def _machines(results: Sequence[Result]) -> str:
    unused = [result for result in results if result.unused is not None]
    parts = [
        '<h2 id="machines">Machines</h2>',
        machines_table([result for result in results if result.unused is None]),
        "<h2>Files</h2>",
        files_table([result for result in results if result.unused is None]),
    ]
    if unused:
        rows = [
            [box(result.file, "th", "left"), box(result.unused, "td", "left wrap")]
            for result in unused
        ]
        parts.append(f"<h3>Not shown</h3>{table(['file', 'why'], rows, left=2)}")
    parts.append("<h3>Conditions of each file</h3>")
    parts += [conditions_of(result) for result in results if result.unused is None]
    return "".join(parts)
