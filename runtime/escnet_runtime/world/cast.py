"""Which compositions a scene is made of."""

from functools import cache
from typing import Final

import numpy as np

from .words import DISTRACTORS, HELD_OUT, TRAINING, Composition, Split

__all__ = ["draw_cast"]

# Beside what is new: another one of a kind, or one that differs from an earlier one in one word, so
# that no word of a name can be left unread.
_TWIN: Final = 0.16
_SIBLING: Final = 0.3
# Seeds in a row have their turn far apart in the list; it shares no divisor with its length.
_STRIDE: Final = 89


def draw_cast(
    rng: np.random.Generator, seed: int, split: Split, objects: tuple[int, int]
) -> tuple[Composition, ...]:
    """Compositions of a scene, as many as ``objects`` allows; the first one is never left out."""
    count = int(rng.integers(objects[0], objects[1] + 1))
    pools = (TRAINING,) if split == "train" else (HELD_OUT, DISTRACTORS)
    first = _draw(rng, TRAINING) if split == "train" else HELD_OUT[seed * _STRIDE % len(HELD_OUT)]
    cast = [first]
    while len(cast) < count:
        earlier, chance = _draw(rng, tuple(cast)), rng.random()
        pool = pools[int(rng.integers(len(pools)))]
        siblings = _siblings(earlier, pool)
        if chance < _TWIN:
            cast.append(earlier)
        elif chance < _TWIN + _SIBLING and siblings:
            cast.append(_draw(rng, siblings))
        else:
            cast.append(_draw(rng, pool))
    return tuple(cast)


def _draw(rng: np.random.Generator, pool: tuple[Composition, ...]) -> Composition:
    return pool[int(rng.integers(len(pool)))]


@cache
def _siblings(one: Composition, pool: tuple[Composition, ...]) -> tuple[Composition, ...]:
    """Those of the pool that share two words with ``one``."""
    return tuple(other for other in pool if _shared(one, other) == 2)


def _shared(one: Composition, other: Composition) -> int:
    return (
        (one.colour == other.colour) + (one.texture == other.texture) + (one.shape == other.shape)
    )
