"""The words of the small world: which names there are, and which of them training never sees.

A name of an object is COLOUR TEXTURE SHAPE; the texture ``plain`` is not spoken: "red striped
ring", "blue star". A fifth of all compositions is held out. Every word, and every pair of words, is
seen in training; only the three together are new.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final, Literal, TypeAlias

from ..errors import InputError

__all__ = [
    "COLOURS",
    "COMPOSITIONS",
    "DISTRACTORS",
    "HELD_OUT",
    "SHAPES",
    "SPLITS",
    "STUFF",
    "TEXTURES",
    "TRAINING",
    "WORLD_VERSION",
    "Composition",
    "Split",
    "check_split",
    "class_groups",
    "evaluation_vocabulary",
    "name_index",
    "vocabulary",
]

#: Part of every seed: whatever changes a scene or a list raises it.
WORLD_VERSION: Final = 1

Split: TypeAlias = Literal["train", "heldout"]
SPLITS: Final[tuple[Split, ...]] = ("train", "heldout")

COLOURS: Final = (
    *("red", "orange", "yellow", "green", "turquoise"),
    *("blue", "purple", "pink", "white", "black"),
)
TEXTURES: Final = ("plain", "striped", "dotted", "checkered", "bordered", "marbled")
SHAPES: Final = (
    *("ball", "ring", "star", "cross", "heart", "moon"),
    *("triangle", "square", "arrow", "drop", "flower", "bolt"),
)
STUFF: Final = (
    *("wooden floor", "tiled floor", "brick wall", "plaster wall", "grassy field"),
    *("sandy beach", "gravel path", "snowy ground", "calm sea", "cloudy sky"),
)

_HELD_OUT_COUNT: Final = 144  # a fifth of 720
_DISTRACTOR_COUNT: Final = 40
# At most so many held-out compositions share two words. Each limit is far below the number of words
# that can stand in the third place, so that every pair of words occurs in training.
_TEXTURE_SHAPE, _COLOUR_TEXTURE, _COLOUR_SHAPE = 2, 3, 2


@dataclass(frozen=True, slots=True, order=True)
class Composition:
    """A colour, a texture and a shape."""

    colour: str
    texture: str
    shape: str

    @property
    def name(self) -> str:
        """Its words, as they stand in captions and vocabularies."""
        spoken = (self.colour, self.texture, self.shape)
        return " ".join(word for word in spoken if word != "plain")


def _rank(salt: str, composition: Composition) -> bytes:
    words = f"{salt}:{composition.colour}:{composition.texture}:{composition.shape}"
    return hashlib.sha256(words.encode()).digest()


def _hold_out(compositions: tuple[Composition, ...]) -> tuple[Composition, ...]:
    """The first by their hash that leave enough of every pair of words to training."""
    held: list[Composition] = []
    pairs: Counter[tuple[str, str]] = Counter()
    for one in sorted(compositions, key=lambda each: _rank("held out", each)):
        limits = {
            (one.texture, one.shape): _TEXTURE_SHAPE,
            (one.colour, one.texture): _COLOUR_TEXTURE,
            (one.colour, one.shape): _COLOUR_SHAPE,
        }
        if len(held) < _HELD_OUT_COUNT and all(pairs[pair] < limits[pair] for pair in limits):
            held.append(one)
            pairs.update(limits.keys())
    return tuple(sorted(held, key=compositions.index))


COMPOSITIONS: Final = tuple(Composition(*words) for words in product(COLOURS, TEXTURES, SHAPES))
HELD_OUT: Final = _hold_out(COMPOSITIONS)
TRAINING: Final = tuple(one for one in COMPOSITIONS if one not in set(HELD_OUT))
#: Training compositions that stand beside the held-out ones in held-out scenes.
DISTRACTORS: Final = tuple(
    sorted(
        sorted(TRAINING, key=lambda one: _rank("distractor", one))[:_DISTRACTOR_COUNT],
        key=COMPOSITIONS.index,
    )
)


def check_split(split: str) -> None:
    """Raise InputError unless ``split`` is one of :data:`SPLITS`."""
    if split not in SPLITS:
        raise InputError(f"got split {split!r}; expected one of {', '.join(SPLITS)}")


@cache
def evaluation_vocabulary() -> tuple[str, ...]:
    """The names a model chooses from in held-out scenes.

    Stuff, then held-out compositions, then the distractors. Every pixel of a held-out scene has one
    of these names.
    """
    return (*STUFF, *(one.name for one in HELD_OUT), *(one.name for one in DISTRACTORS))


@cache
def vocabulary(split: Split) -> tuple[str, ...]:
    """All names that can occur in the scenes of a split.

    ``train``: stuff, then training compositions; ``heldout``: :func:`evaluation_vocabulary`.

    Raises:
        InputError: there is no such split.
    """
    check_split(split)
    if split == "heldout":
        return evaluation_vocabulary()
    return (*STUFF, *(one.name for one in TRAINING))


@cache
def name_index(split: Split) -> Mapping[str, int]:
    """Name → its place in :func:`vocabulary`."""
    return {name: index for index, name in enumerate(vocabulary(split))}


@cache
def class_groups(split: Split) -> Mapping[str, tuple[int, ...]]:
    """What figures are told apart by: group → its places in :func:`vocabulary`.

    ``held_out``: compositions that training never sees; ``seen``: those it does, in held-out scenes
    the distractors; ``surfaces``. A group without a name in this split is left out.
    """
    held_out = frozenset(one.name for one in HELD_OUT)
    groups: dict[str, list[int]] = {"held_out": [], "seen": [], "surfaces": []}
    for index, name in enumerate(vocabulary(split)):
        group = "surfaces" if name in STUFF else "held_out" if name in held_out else "seen"
        groups[group].append(index)
    return {group: tuple(places) for group, places in groups.items() if places}
