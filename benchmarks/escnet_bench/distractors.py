"""Names that make a vocabulary large and are in no picture: what a shortlist has to leave out."""

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Final

from escnet_runtime.errors import InputError
from escnet_runtime.vocabulary import read_classes_file
from escnet_runtime.world.words import (
    COLOURS,
    COMPOSITIONS,
    SHAPES,
    TEXTURES,
    evaluation_vocabulary,
)

__all__ = ["WORLD", "distractor_names", "enlarged", "world_distractors"]

#: ``--distractors``: those that the words of the small world make.
WORLD: Final = "world"


@cache
def world_distractors() -> tuple[str, ...]:
    """Names of the small world's words that no pixel of a held-out scene has; thousands.

    First the 536 compositions of training that the held-out vocabulary leaves out: real names that
    differ from right ones in a word or two. Then, in the order of their hashes, what the grammar of
    the world does not have: two textures ("red striped dotted ring") and two colours ("red blue
    striped ring"). All are words of training, so none has an embedding that was never learned.
    """
    known = set(evaluation_vocabulary())
    real = [one.name for one in COMPOSITIONS if one.name not in known]
    spoken = TEXTURES[1:]  # without the one that is not said
    textures = [
        f"{colour} {one} {other} {shape}"
        for colour, (one, other), shape in product(COLOURS, permutations(spoken, 2), SHAPES)
    ]
    colours = [
        " ".join((one, other, *texture, shape))
        for (one, other), texture, shape in product(
            permutations(COLOURS, 2), [(), *((word,) for word in spoken)], SHAPES
        )
    ]
    return (*sorted(real, key=_rank), *sorted([*textures, *colours], key=_rank))


def distractor_names(source: str) -> tuple[str, ...]:
    """The names of ``--distractors``: :data:`WORLD`, or a file of categories.

    Raises:
        VocabularyError: the file cannot be read.
    """
    return world_distractors() if source == WORLD else tuple(read_classes_file(Path(source)))


def enlarged(names: Sequence[str], distractors: Sequence[str], count: int) -> tuple[str, ...]:
    """``names`` and as many distractors behind them as make ``count`` categories.

    A distractor is left out if one of its synonyms is one of a name or of an earlier distractor.

    Raises:
        InputError: there are more names than that, or too few distractors.
    """
    if count < len(names):
        raise InputError(
            f"got {count} categories for images of {len(names)} classes; expected at least "
            f"{len(names)}"
        )
    taken = {word for name in names for word in _words(name)}
    found = list(names)
    for name in distractors:
        if len(found) == count:
            break
        words = _words(name)
        if words.isdisjoint(taken):
            taken |= words
            found.append(name)
    if len(found) < count:
        raise InputError(
            f"got {count} categories; {len(names)} classes and the distractors make "
            f"{len(found)}: give more of them with --distractors, or ask for fewer categories"
        )
    return tuple(found)


def _words(name: str) -> set[str]:
    return {part.strip().lower() for part in name.split(", ")}


def _rank(name: str) -> bytes:
    return hashlib.sha256(f"distractor of a shortlist:{name}".encode()).digest()
