"""Colours and marks of implementations, the same in every chart.

Chosen by search so that any two stay apart for readers with normal sight, without red and without
green (Machado, Oliveira, Fernandes 2009; the test measures it), with a contrast of at least 3 to
the page. Each line also has its own mark and a label.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["DARK", "LIGHT", "MARKS", "PAPER", "STAGE_DARK", "STAGE_LIGHT", "Styles"]

#: The page, in light and in dark mode.
PAPER: Final = ("#ffffff", "#14161b")
LIGHT: Final = (
    *("#b7321f", "#720d20", "#e67500", "#0037ff", "#778c96"),
    *("#12112e", "#155884", "#3f2bad", "#14a866", "#dc63de"),
)
DARK: Final = (
    *("#fe8a1b", "#cb2565", "#fcf674", "#37a5f5", "#6364a4"),
    *("#e9ead7", "#79e6ff", "#8a42eb", "#0cce72", "#e784b4"),
)
#: Shapes, by name; there are as many as colours.
MARKS: Final = (
    *("circle", "square", "triangle", "diamond", "cross"),
    *("down", "ring", "plus", "box", "star"),
)
#: Implementations that are known, in the order of the colours.
_KNOWN: Final = (
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "torch-plain",
    "torch-naive-ppg",
    "torch-compile-static",
    "torch-compile-dynamic",
    "openvino",
    "torch-shared-compile-static",
)
_ALIASES: Final = {
    "onnxruntime-cuda": "onnxruntime",
    "torch eager": "torch",
    "torch.compile": "torch-compile-static",
}
#: Stages of a bar, light and dark; neighbours differ in lightness, and are told apart by a gap.
STAGE_LIGHT: Final = (
    *("#2e5fa8", "#f2b84b", "#7a2f5d", "#8ccbe8", "#b5442c", "#a9cf8f", "#4d4d57", "#d9c7e8"),
)
STAGE_DARK: Final = (
    *("#5b93e6", "#ffd27a", "#b3578f", "#a9e0f7", "#e2694e", "#c0e6a5", "#8a8f9c", "#e6d8f2"),
)


@dataclass(frozen=True, slots=True)
class Styles:
    """Which colour an implementation has: an index into those above."""

    index: dict[str, int]

    @classmethod
    def of(cls, implementations: Iterable[str]) -> "Styles":
        """Known implementations have fixed colours; others get the remaining ones, then repeat."""
        names = sorted(set(implementations))
        index = {
            name: _KNOWN.index(known)
            for name in names
            if (known := _ALIASES.get(name, name)) in _KNOWN
        }
        free = [i for i in range(len(_KNOWN)) if i not in index.values()] or [*range(len(_KNOWN))]
        others = [name for name in names if name not in index]
        index |= {name: free[i % len(free)] for i, name in enumerate(others)}
        return cls(index)
