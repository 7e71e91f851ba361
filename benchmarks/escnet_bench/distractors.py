"""Distractors: names that are in no picture and enlarge a vocabulary, to test shortlists."""

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

#: Value of ``--distractors`` for names made from the words of the small world.
WORLD: Final = "world"


@cache
def world_distractors() -> tuple[str, ...]:
    """Thousands of names made from the small world's words that no held-out scene shows.

    First come the 536 training compositions that the held-out vocabulary leaves out: real names
    that differ from right ones in a word or two. Then, ordered by hash, names that the world's
    grammar does not have: with two textures ("red striped dotted ring") or two colours ("red blue
    striped ring"). All words occur in training, so the embedding of none is untrained.
    """
    known = set(evaluation_vocabulary())
    real = [one.name for one in COMPOSITIONS if one.name not in known]
    spoken = TEXTURES[1:]  # without the plain one, which names do not mention
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
    """``names`` followed by as many distractors as it takes to make ``count`` categories.

    A distractor that shares a synonym with a name or an earlier distractor is left out.

    Raises:
        InputError: there are more names than ``count``, or too few distractors.
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
