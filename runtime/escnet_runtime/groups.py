"""Sums over categories in one fixed order, so that no result depends on the chunk.

Float addition is not associative: a sum formed chunk by chunk changes in its last bit with the
chunk, and near-ties behind it flip. So sums are formed in groups of a fixed number of categories,
counted from the first one; a chunk is whole groups, a graph gives one sum a group, and these are
added up in order, in float32.
"""

import itertools
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["GROUP", "GroupSums", "category_chunks", "group_weights", "whole_groups"]

_Floats = npt.NDArray[np.float32]

#: Categories a group, in the graphs that are exported; a bundle names its own.
GROUP: Final = 16


def whole_groups(chunk: int, group: int) -> int:
    """``chunk`` categories rounded up to whole groups."""
    return -(-chunk // group) * group


def category_chunks(categories: int, chunk: int, group: int) -> list[slice]:
    """Cut ``categories`` at multiples of ``group`` into slices as equal as possible.

    A slice has at most ``whole_groups(chunk, group)`` categories.
    """
    groups = -(-categories // group)
    count = -(-groups * group // whole_groups(chunk, group))
    edges = [group * round(index * groups / count) for index in range(count)]
    return [slice(start, stop) for start, stop in itertools.pairwise([*edges, categories])]


def group_weights(here: int, categories: int, group: int) -> _Floats:
    """Weights float32 [g, group] of ``here`` categories in g groups: 1 / categories, then zeros."""
    weights = np.zeros(whole_groups(here, group), np.float32)
    weights[:here] = 1.0 / categories
    return weights.reshape(-1, group)


class GroupSums(dict[str, _Floats]):
    """Sums by name, without the axis of groups."""

    def add(self, name: str, parts: _Floats) -> None:
        """Add the sums of g groups, float32 [g, ...], one after the other."""
        for part in parts:
            if name in self:
                np.add(self[name], part, out=self[name])
            else:
                self[name] = part.copy()  # the graph's own array may be used again
