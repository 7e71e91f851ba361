"""``escnet-bench report``: result files of any number of machines as one page, and as plots."""

from .facts import Accuracy, LeftOut, Machine, Operations, Ratio, Result, Timing
from .files import find_results, read_result

__all__ = [
    "Accuracy",
    "LeftOut",
    "Machine",
    "Operations",
    "Ratio",
    "Result",
    "Timing",
    "find_results",
    "read_result",
]
