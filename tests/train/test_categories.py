"""Which categories an image is trained with."""

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from escnet.train.categories import CategorySampler, CategorySampling
from escnet_runtime.errors import InputError

NAMES = [
    f"{colour} {shape}"
    for colour in ("red", "blue", "green", "black")
    for shape in ("ring", "star", "ball", "moon")
] + ["sea", "sky"]


def draw(present: list[int], *, index: int = 0, seed: int = 0, **settings: Any) -> list[int]:
    sampler = CategorySampler(NAMES, CategorySampling(**settings))
    rng = np.random.Generator(np.random.PCG64(seed))
    found: list[int] = sampler.draw(rng, np.array(present, np.int64), index).tolist()
    return found


def test_all_classes_is_all_in_order() -> None:
    assert draw([3, 1]) == list(range(len(NAMES)))
    assert draw([3, 1], per_image=1000) == list(range(len(NAMES)))


def test_what_is_in_the_image_is_asked_for() -> None:
    for seed in range(20):
        found = draw([16, 5, 2], seed=seed, per_image=6)
        assert len(found) == 6
        assert {2, 5, 16} <= set(found)
        assert all(a < b for a, b in pairwise(found)), "sorted, each once"


def test_of_too_many_the_smallest_are_dropped() -> None:
    assert draw([7, 1, 9, 4], per_image=2) == [1, 7]


def test_hard_ones_share_a_word() -> None:
    related = {i for i, name in enumerate(NAMES) if set(name.split()) & {"red", "ring"}}
    for seed in range(20):
        found = draw([0], seed=seed, per_image=5, hard=1.0)
        assert len(found) == 5
        assert set(found) <= related


def test_the_more_words_they_share_the_likelier_hard_ones_are() -> None:
    names = [f"{a} {b} {c}" for a in "pqr" for b in "stu" for c in "vwx"]
    sampler = CategorySampler(names, CategorySampling(per_image=4, hard=1.0))
    counts = [0, 0, 0]
    for seed in range(300):
        rng = np.random.Generator(np.random.PCG64(seed))
        for index in sampler.draw(rng, np.array([0]), 0)[1:].tolist():
            counts[len(set(names[index].split()) & set(names[0].split()))] += 1
    # Six names share two words with the first, twelve share one, eight none.
    assert counts[0] == 0
    assert 2 < counts[2] / counts[1] < 6


def test_a_draw_is_what_it_ever_was() -> None:
    """Another one would give resumed runs other weights."""
    assert [draw([16, 5, 2], seed=seed, per_image=7) for seed in range(4)] == [
        [0, 2, 3, 5, 9, 14, 16],
        [1, 2, 5, 7, 14, 16, 17],
        [1, 2, 3, 5, 10, 13, 16],
        [0, 2, 3, 5, 11, 14, 16],
    ]


def test_a_name_without_a_word_shares_none() -> None:
    sampler = CategorySampler(["?", "!", "red ball"], CategorySampling(per_image=2, hard=1.0))
    assert len(sampler.draw(np.random.default_rng(0), np.array([0]), 0)) == 2


@pytest.mark.parametrize("per_image", [None, 8])
def test_many_names_need_little_memory(per_image: int | None) -> None:
    names = [f"thing number-{index}" for index in range(20_000)]
    tracemalloc.start()
    try:
        sampler = CategorySampler(names, CategorySampling(per_image=per_image))
        sampler.draw(np.random.default_rng(0), np.array([3, 17]), 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # every name against every word would be 3.2 GB


def test_without_hard_ones_all_absent_ones_come() -> None:
    seen = {index for seed in range(200) for index in draw([0], seed=seed, per_image=3, hard=0.0)}
    assert seen == set(range(len(NAMES)))


def test_where_hard_ones_run_out_others_fill_up() -> None:
    assert len(draw([16], per_image=8, hard=1.0)) == 8


def test_every_so_many_images_are_wide() -> None:
    counts = [len(draw([0], index=index, per_image=4, wide_every=3, wide=9)) for index in range(6)]
    assert counts == [4, 4, 9, 4, 4, 9]


def test_an_image_without_labels_is_asked_for_some() -> None:
    assert len(draw([], per_image=4, hard=0.5)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_image": 1}, "per_image is 1; expected at least 2"),
        ({"hard": 1.5}, r"hard is 1\.5; expected 0 to 1"),
        ({"wide_every": 2}, "wide 0; expected"),
        ({"wide_every": -1}, "wide_every is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CategorySampling(**settings)
