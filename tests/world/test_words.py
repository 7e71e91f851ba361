"""Which names there are, and what training never sees."""

import hashlib
from itertools import product

import pytest

from escnet_runtime.errors import InputError
from escnet_runtime.world import WORLD_VERSION, class_groups, evaluation_vocabulary, vocabulary
from escnet_runtime.world.words import (
    COLOURS,
    COMPOSITIONS,
    DISTRACTORS,
    HELD_OUT,
    SHAPES,
    STUFF,
    TEXTURES,
    TRAINING,
)
from tests.shared import ROOT


def test_a_fifth_of_all_compositions_is_held_out() -> None:
    assert len(COMPOSITIONS) == len(set(COMPOSITIONS)) == 10 * 6 * 12
    assert len(HELD_OUT) == 144
    assert not set(HELD_OUT) & set(TRAINING)
    assert set(HELD_OUT) | set(TRAINING) == set(COMPOSITIONS)
    assert set(DISTRACTORS) < set(TRAINING)


def test_training_has_every_word_and_every_pair_of_words() -> None:
    assert {one.colour for one in TRAINING} == set(COLOURS)
    assert {one.texture for one in TRAINING} == set(TEXTURES)
    assert {one.shape for one in TRAINING} == set(SHAPES)
    pairs = {(one.colour, one.texture) for one in TRAINING}
    assert pairs == set(product(COLOURS, TEXTURES))
    pairs = {(one.texture, one.shape) for one in TRAINING}
    assert pairs == set(product(TEXTURES, SHAPES))
    pairs = {(one.colour, one.shape) for one in TRAINING}
    assert pairs == set(product(COLOURS, SHAPES))


def test_every_word_is_held_out_in_some_composition() -> None:
    assert {one.colour for one in HELD_OUT} == set(COLOURS)
    assert {one.texture for one in HELD_OUT} == set(TEXTURES)
    assert {one.shape for one in HELD_OUT} == set(SHAPES)


def test_plain_is_not_spoken() -> None:
    names = [one.name for one in COMPOSITIONS]
    assert len(set(names)) == len(names)
    assert "red ball" in names
    assert "red striped ball" in names
    assert not any("plain" in name for name in names)


def test_vocabularies_have_no_name_of_the_other_split() -> None:
    training, held_out = vocabulary("train"), vocabulary("heldout")
    assert held_out == evaluation_vocabulary()
    assert training[:10] == held_out[:10] == STUFF
    assert len(training) == len(set(training)) == 10 + 576
    assert len(held_out) == len(set(held_out)) == 10 + 144 + 40
    shared = {*STUFF, *(one.name for one in DISTRACTORS)}
    assert set(training) & set(held_out) == shared
    with pytest.raises(InputError, match="got split 'test'; expected one of train, heldout"):
        vocabulary("test")


def test_groups_tell_every_name_of_a_split_once() -> None:
    groups = class_groups("heldout")
    assert {name: len(places) for name, places in groups.items()} == {
        "held_out": 144,
        "seen": 40,
        "surfaces": 10,
    }
    assert sorted(sum(groups.values(), ())) == list(range(194))
    names = vocabulary("heldout")
    assert {names[place] for place in groups["held_out"]} == {one.name for one in HELD_OUT}
    assert {name: len(places) for name, places in class_groups("train").items()} == {
        "seen": 576,
        "surfaces": 10,
    }


def test_the_lists_belong_to_the_version() -> None:
    """Figures of another list are other figures: whoever changes it raises WORLD_VERSION."""
    assert WORLD_VERSION == 1
    names = "\n".join(evaluation_vocabulary())
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "1d873e246d826710"


def test_the_documentation_has_the_lists() -> None:
    text = " ".join((ROOT / "docs" / "world.md").read_text(encoding="utf-8").split())
    for compositions in (HELD_OUT, DISTRACTORS):
        for colour in COLOURS:
            names = [
                one.name.removeprefix(f"{colour} ") for one in compositions if one.colour == colour
            ]
            assert f"| {colour} | {', '.join(names)} |" in text
