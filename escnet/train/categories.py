"""Which categories an image is trained with: those in it, and some that are not.

With few classes an image is asked for all of them, as in the paper (171 of COCO-Stuff). With many,
memory and time allow for some; the wrong answers that teach most are those that share words with a
right one ("red striped ring" beside "red dotted ring").
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from escnet_runtime.errors import InputError

__all__ = ["CategorySampler", "CategorySampling"]

#: How many times as likely each further word in common makes a category.
_FACTOR_A_WORD: Final = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CategorySampling:
    """How many categories, and which.

    Attributes:
        per_image: number of categories of an image; None for all classes.
        hard: share of the absent ones that has a word in common with a present one; each further
            word in common makes one eight times as likely.
        wide_every: each so many-th image is asked for ``wide`` categories instead; 0: none is.
            A model that never saw many at once does not know what their mean looks like.
        wide: see ``wide_every``.
    """

    per_image: int | None = None
    hard: float = 0.5
    wide_every: int = 0
    wide: int = 0

    def __post_init__(self) -> None:
        if self.per_image is not None and self.per_image < 2:
            raise InputError(f"per_image is {self.per_image}; expected at least 2, or none for all")
        if not 0.0 <= self.hard <= 1.0:
            raise InputError(f"hard is {self.hard}; expected 0 to 1")
        if self.wide_every < 0 or (self.wide_every and self.wide < 2):
            raise InputError(
                f"wide_every is {self.wide_every} and wide {self.wide}; expected 0, or a number of "
                "images and at least 2 categories"
            )


class CategorySampler:
    """Draws the categories of an image.

    Args:
        names: the data set's classes.
        sampling: how many.
    """

    def __init__(self, names: Sequence[str], sampling: CategorySampling) -> None:
        self.sampling, self.count = sampling, len(names)
        self._words = [frozenset(re.findall(r"\w+", name.lower())) for name in names]
        having: dict[str, list[int]] = defaultdict(list)
        for index, words in enumerate(self._words):
            for word in words:
                having[word].append(index)
        self._having = {word: np.array(classes) for word, classes in having.items()}

    def draw(
        self, rng: np.random.Generator, present: NDArray[np.int64], index: int
    ) -> NDArray[np.int64]:
        """Classes for an image, sorted: [n].

        Args:
            rng: where chance comes from.
            present: the classes in the image, the largest first; of too many the last are dropped.
            index: number of the image, for ``wide_every``.
        """
        sampling = self.sampling
        wanted = self.count if sampling.per_image is None else sampling.per_image
        if sampling.wide_every and index % sampling.wide_every == sampling.wide_every - 1:
            wanted = sampling.wide
        if wanted >= self.count:
            return np.arange(self.count)
        kept = present[:wanted]
        absent = np.ones(self.count, bool)
        absent[kept] = False
        missing = wanted - len(kept)
        shared = self._shared(kept)
        related = np.where(absent & (shared > 0), _FACTOR_A_WORD ** (shared - 1), 0.0)
        hard = _some(rng, related, round(sampling.hard * missing))
        absent[hard] = False
        easy = _some(rng, absent.astype(np.float64), missing - len(hard))
        return np.sort(np.concatenate([kept, hard, easy]))

    def _shared(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """The most words that each class has in common with one of ``kept``, int64 [N]."""
        most = np.zeros(self.count, np.int64)
        for index in kept.tolist():
            common = np.zeros(self.count, np.int64)
            for word in self._words[index]:
                common[self._having[word]] += 1  # a class has a word once
            np.maximum(most, common, out=most)
        return most


def _some(rng: np.random.Generator, weight: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """``count`` of the indices, the more likely the greater their weight; never one of weight 0."""
    count = min(count, int(np.count_nonzero(weight)))
    if not count:
        return np.empty(0, np.int64)
    return rng.choice(len(weight), count, replace=False, p=weight / weight.sum())
