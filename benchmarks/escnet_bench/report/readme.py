"""The README's table, from committed results: nobody copies a number by hand."""

import re
from collections.abc import Sequence
from typing import Final

from escnet_runtime.errors import InputError

from .facts import Result, Timing

__all__ = ["BEGIN", "END", "RESULTS", "readme_table", "updated_readme"]

RESULTS: Final = "benchmarks/results"
BEGIN: Final = "<!-- escnet-bench report benchmarks/results --readme README.md: begin -->"
END: Final = "<!-- escnet-bench report: end -->"
#: The backend that a row does not name.
_USUAL: Final = "onnxruntime"
_COLUMNS: Final = (
    *("bundle", "categories", "seconds an image", "prompts", "peak memory"),
    *("start to first mask¹", "file"),
)


def readme_table(results: Sequence[Result]) -> str:
    """A row for each number of categories of each footprint, with the file that says so.

    Raises:
        InputError: there is no footprint among the files.
    """
    found = [one for r in results if r.benchmark == "footprint" for one in r.timings]
    if not found:
        raise InputError("no file is a footprint; the table is of escnet-bench footprint's files")
    found.sort(key=lambda one: (one.model, one.precision, one.file, one.categories))
    rows = [_row(one) for one in found]
    return "\n".join([_line(_COLUMNS), f"|{'---|' * len(_COLUMNS)}", *rows])


def _row(one: Timing) -> str:
    start, share = one.first_mask_seconds, one.prompt_share
    seconds = "not measured" if one.p50_ms is None else f"{one.p50_ms / 1e3:.2f}"
    prompts = "not measured" if share is None else f"{100 * share:.2g} %"
    memory = one.peak_memory_bytes
    size = "not measured" if memory is None else f"{memory / 1e6:.0f} MB"
    first = "not measured" if start is None else f"{start:.1f} s"
    bundle = f"{_word(one.model)} {_plain(one.precision)}"
    if one.implementation != _USUAL:
        bundle += f", {_plain(one.implementation)}"
    cells = (bundle, str(one.categories), seconds, prompts, size, first, _word(one.file))
    return _line(cells)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(words: str) -> str:
    """Words that stay in their cell."""
    return words.replace("|", "\\|")


def _plain(text: str) -> str:
    """A text of a file as it is, if it is a name; else as code."""
    return text if re.fullmatch(r"[\w -]*", text) else _word(text)


def _word(text: str) -> str:
    """A text of a file as code: whatever it is, it is no Markdown and no HTML."""
    return f"`{''.join(one for one in text if one.isprintable() and one != '`')}`"


def updated_readme(text: str, results: Sequence[Result], name: str = "README.md") -> str:
    """``text`` with the table between its two marks written anew; all else stays.

    Raises:
        InputError: the marks are not there, or not once each in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before or END in after:
        raise InputError(f"{name} needs the lines {BEGIN} and {END}, once each, in this order")
    return f"{before}{BEGIN}\n{readme_table(results)}\n{END}{after}"
