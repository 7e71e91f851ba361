"""Which categories of a large vocabulary can win a pixel of an image at all.

A category is judged by its **margin**: how far its score stays behind the best score of the same
pixel, at the pixel where it stays behind least. A category that is best somewhere has margin 0.
Those with the smallest margins are kept, and the model sees no others.

Scores are the correlation, the cosine of each pixel with each category, straight from the features
of the image encoder: one product of matrices for all categories. Or they are those after the first
ESC block, which that block has to be run for with all categories.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .groups import whole_groups
from .pipeline import EncodedImage, Observer, Pipeline

__all__ = [
    "AUTO_LEAST",
    "AUTO_MARGIN",
    "AUTO_MOST",
    "Keep",
    "Shortlist",
    "correlation",
    "kept_categories",
    "margins",
    "parse_shortlist",
    "select",
]

_Floats = npt.NDArray[np.float32]

Keep = int | Literal["auto"]

#: "auto" keeps what stays behind by at most so much, in units of the prompts' temperature, but no
#: fewer and no more categories than these; all were chosen by measurement (docs/shortlist.md).
AUTO_MARGIN: Final = 1.0
AUTO_LEAST: Final = 64
AUTO_MOST: Final = 256
_EXPECTED: Final = 'a whole number of at least 1, or "auto"'


@dataclass(frozen=True, slots=True)
class Shortlist:
    """How many categories are kept, and by which scores.

    Attributes:
        keep: so many; or "auto", those whose margin is at most :data:`AUTO_MARGIN` temperatures of
            the prompt generator, but :data:`AUTO_LEAST` at least and :data:`AUTO_MOST` at most, in
            whole groups of the bundle (16), which the next best make up.
        blocks: ESC blocks that refine the scores of all categories first: 0 takes the correlation.
            "auto" is calibrated for that alone.

    Raises InputError for a value out of range.
    """

    keep: Keep
    blocks: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        number = isinstance(self.keep, int | np.integer) and not isinstance(self.keep, bool)
        if self.keep != "auto" and not (number and int(self.keep) >= 1):
            raise InputError(f"shortlist is {self.keep!r}, expected {_EXPECTED}")
        if self.blocks not in (0, 1) or isinstance(self.blocks, bool):
            raise InputError(f"a shortlist after {self.blocks!r} blocks; expected 0 or 1")
        if self.blocks and self.keep == "auto":
            raise InputError(
                '"auto" is calibrated for the correlation alone; keep a number of categories after '
                "the first block"
            )

    @classmethod
    def of(
        cls, value: "Shortlist | Keep | None", categories: int, group: int
    ) -> "Shortlist | None":
        """The shortlist to use for so many categories; None if nothing can be dropped.

        Raises:
            InputError: ``value`` is no shortlist.
        """
        if value is None:
            return None
        made = value if isinstance(value, Shortlist) else cls(value)
        least = whole_groups(AUTO_LEAST, group) if made.keep == "auto" else int(made.keep)
        return made if least < categories else None


def parse_shortlist(text: str) -> Keep:
    """Read ``--shortlist``: a number of categories, or ``auto``.

    Raises:
        InputError: it is neither.
    """
    if text == "auto":
        return "auto"
    try:
        return int(Shortlist(int(text)).keep)
    except ValueError:
        raise InputError(f"--shortlist is {text!r}, expected {_EXPECTED}") from None
    except InputError:
        raise InputError(f"--shortlist is {text}, expected {_EXPECTED}") from None


def kept_categories(
    pipeline: Pipeline,
    encoded: Sequence[EncodedImage],
    text: _Floats,
    shortlist: Shortlist,
    *,
    temperature: float,
    chunk: int,
    observer: Observer | None = None,
) -> npt.NDArray[np.intp]:
    """The rows of ``text`` that an image is segmented with, in ascending order.

    Args:
        pipeline: of the model; its clock counts the choice as "shortlist".
        encoded: every look at the image: itself, or all crops of sliding windows.
        text: float32 [N, D], unit norm.
        shortlist: how many are kept.
        temperature: of the prompt generator, in units of the scores.
        chunk: categories at a time in a block that has to be run; changes nothing.
        observer: told the choice as stage "shortlist", output "kept".
    """
    if shortlist.blocks:
        refine = {"chunk": chunk, "blocks": shortlist.blocks}
        scores = [pipeline.scores(image, text, **refine) for image in encoded]
        start = time.perf_counter()
    else:
        start = time.perf_counter()
        scores = [correlation(pipeline.features(image), text) for image in encoded]
    kept = select(margins(scores), shortlist, temperature=temperature, group=pipeline.group)
    pipeline.clock.add("shortlist", start)
    if observer:
        observer("shortlist", slice(0, len(text)), {"kept": kept})
    return kept


def correlation(features: _Floats, text: _Floats) -> _Floats:
    """Cosines float32 [N, h, w] of features float32 [1, D, h, w] and text float32 [N, D].

    Those of the graph ``correlation``, but for the order in which a product is added up.
    """
    _, depth, height, width = features.shape
    cosines: _Floats = text @ np.ascontiguousarray(features.reshape(depth, -1))
    return cosines.reshape(-1, height, width)


def margins(scores: Sequence[_Floats]) -> _Floats:
    """The margin float32 [N] of each category, the least over all pixels of all ``scores``.

    Args:
        scores: float32 [N, h, w] of each look at the image. Pixels that are not a number are passed
            over; a category without another pixel has margin infinity.
    """
    least = np.full(len(scores[0]), np.inf, np.float32)
    for one in scores:
        pixels = one.reshape(len(one), -1)
        behind = np.fmax.reduce(pixels, axis=0) - pixels
        np.fmin(least, np.fmin.reduce(behind, axis=1), out=least)
    return least


def select(
    margin: _Floats, shortlist: Shortlist, *, temperature: float, group: int
) -> npt.NDArray[np.intp]:
    """The categories that are kept, in ascending order; of equal margins, the first ones.

    Args:
        margin: float32 [N], from :func:`margins`.
        shortlist: how many.
        temperature: of the prompt generator, in units of the scores.
        group: categories of a group; "auto" keeps whole ones.
    """
    if shortlist.keep == "auto":
        near = int((margin <= np.float32(AUTO_MARGIN * temperature)).sum())
        count = whole_groups(min(max(near, AUTO_LEAST), AUTO_MOST), group)
    else:
        count = shortlist.keep
    return np.sort(np.argsort(margin, kind="stable")[:count])
