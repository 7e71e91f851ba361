"""Shortlists: which categories are kept, and that the model is then that of these alone."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime import InputError, Segmentation, Segmenter, Vocabulary
from escnet_runtime.images import ImageArray
from escnet_runtime.segmenter import Window
from escnet_runtime.shortlist import (
    AUTO_LEAST,
    AUTO_MARGIN,
    Shortlist,
    correlation,
    margins,
    parse_shortlist,
    select,
)
from escnet_runtime.windows import crops, plan_windows
from tests.runtime.hostile import change_description

Floats = npt.NDArray[np.float32]
NAMES = [f"{colour} {thing}" for colour in ("red", "blue", "old", "wet") for thing in (
    *("sky", "tree", "grass", "road", "house"), *("car", "dog", "cow", "lamp", "sofa"),
)]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for embeddings that the tests of this module share."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path, cache: Path) -> Iterator[Segmenter]:
    """Of random weights at fp16, where any bit flips a label."""
    with Segmenter(tiny_bundle, cache=cache) as made:
        yield made


@pytest.fixture(scope="module")
def vocabulary(segmenter: Segmenter) -> Vocabulary:
    """Forty categories."""
    return segmenter.vocabulary(NAMES)


@pytest.fixture(scope="module")
def picture() -> ImageArray:
    """Areas of different colours with grain, uint8 [60, 80, 3]."""
    y, x = np.mgrid[:60, :80]
    areas = np.stack([255 * (y < 30), 3 * x, 200 * ((x - 40) ** 2 + (y - 40) ** 2 < 300)], axis=-1)
    grain = np.random.Generator(np.random.PCG64(2)).integers(-30, 31, areas.shape)
    return (areas + grain).clip(0, 255).astype(np.uint8)


def same(one: Segmentation, other: Segmentation) -> None:
    """To the last bit."""
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.labels.dtype == other.labels.dtype
    np.testing.assert_array_equal(one.confidence, other.confidence)


class Kept:
    """An observer that remembers what was kept, and how many categories each decoder saw."""

    def __init__(self) -> None:
        self.rows: list[npt.NDArray[np.intp]] = []
        self.stages: list[str] = []
        self.decoded = 0
        self.scores: dict[str, list[Floats]] = {}

    def __call__(self, stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        self.stages.append(stage)
        count = where.stop - where.start
        if stage == "shortlist":
            self.rows.append(outputs["kept"])
        elif stage == "decoder":
            self.decoded = max(self.decoded, where.stop)
        for name in ("scores", "scores_out"):
            if name in outputs:
                self.scores.setdefault(stage, []).append(np.array(outputs[name][:count]))


# Margins and the choice


def test_a_margin_is_the_least_distance_from_the_winner_of_a_pixel() -> None:
    scores = np.array([[[0.9, 0.1]], [[0.5, 0.2]], [[0.8, 0.0]], [[0.1, 0.1]]], np.float32)
    np.testing.assert_allclose(margins([scores]), [0, 0, 0.1, 0.1], atol=1e-6)
    # The second look has another winner.
    np.testing.assert_allclose(margins([scores, scores[::-1]]), [0, 0, 0, 0], atol=1e-6)


def test_what_is_not_a_number_wins_nothing_and_spoils_no_other() -> None:
    scores = np.array([[[np.nan, 0.1]], [[0.5, 0.2]], [[np.nan, np.nan]]], np.float32)
    np.testing.assert_allclose(margins([scores]), [0.1, 0, np.inf], atol=1e-6)
    kept = select(margins([scores]), Shortlist(2), temperature=1, group=16)
    assert kept.tolist() == [0, 1]


def test_ties_go_to_the_first_and_the_order_is_kept() -> None:
    margin = np.array([0.2, 0.0, 0.1, 0.1, 0.0, 0.1], np.float32)
    for keep, kept in ((1, [1]), (2, [1, 4]), (3, [1, 2, 4]), (4, [1, 2, 3, 4]), (9, range(6))):
        assert select(margin, Shortlist(keep), temperature=1, group=16).tolist() == list(kept)


@pytest.mark.parametrize(
    ("near", "kept"),
    [
        (0, 64),
        (1, 64),
        (64, 64),
        (65, 80),
        (80, 80),
        (255, 256),
        (256, 256),
        (257, 256),
        (300, 256),
    ],
)
def test_auto_keeps_whole_groups_of_what_is_near(near: int, kept: int) -> None:
    """Of three hundred categories so many are within the margin: the last ones of the list."""
    margin = np.full(300, 2.1 * AUTO_MARGIN, np.float32)
    margin[300 - near :] = 2 * AUTO_MARGIN
    found = set(select(margin, Shortlist("auto"), temperature=2, group=16).tolist())
    assert len(found) == kept
    assert found <= set(range(300 - near, 300)) or set(range(300 - near, 300)) <= found


def test_auto_drops_none_of_few() -> None:
    assert Shortlist.of("auto", AUTO_LEAST, 16) is None
    assert Shortlist.of("auto", AUTO_LEAST + 1, 16) == Shortlist("auto")
    assert Shortlist.of("auto", 70, 36) is None  # two whole groups


def test_a_number_of_numpy_is_a_number() -> None:
    made = Shortlist.of(np.int64(12), 100, 16)  # type: ignore[arg-type]
    assert made == Shortlist(12)
    with pytest.raises(InputError, match="expected a whole number of at least 1"):
        Shortlist(np.int64(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "7", "many", ""])
def test_what_is_no_shortlist_is_refused(
    wrong: Any, segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    with pytest.raises(InputError, match=r"shortlist is .*, expected a whole number"):
        segmenter(picture, vocabulary, shortlist=wrong)
    with pytest.raises(InputError, match="shortlist is"):
        segmenter.stream([], vocabulary, shortlist=wrong)


def test_auto_after_the_first_block_is_refused() -> None:
    with pytest.raises(InputError, match="calibrated for the correlation"):
        Shortlist("auto", blocks=1)
    with pytest.raises(InputError, match="expected 0 or 1"):
        Shortlist(3, blocks=2)  # type: ignore[arg-type]


def test_options_are_read() -> None:
    assert parse_shortlist("auto") == "auto"
    assert parse_shortlist("12") == 12
    for wrong in ("0", "-3", "many", "1.5", ""):
        with pytest.raises(InputError, match=r"--shortlist is .*, expected a whole number"):
            parse_shortlist(wrong)


# Exactness


@pytest.mark.parametrize("window", ["none", "sliding"])
def test_keeping_all_is_no_shortlist_to_the_last_bit(
    window: Window, segmenter: Segmenter, picture: ImageArray
) -> None:
    few = segmenter.vocabulary(NAMES[:7])
    plain = segmenter(picture, few, window=window)
    assert plain.kept == 7
    for shortlist in (7, 8, 10**9, "auto", Shortlist(7, blocks=1)):
        seen = Kept()
        found = segmenter(picture, few, window=window, shortlist=shortlist, observer=seen)
        same(found, plain)
        assert found.kept == 7
        assert "shortlist" not in seen.stages


@pytest.mark.parametrize(
    ("shortlist", "window"),
    [
        *((keep, "none") for keep in (1, 2, 17, 39, Shortlist(5, blocks=1))),
        *((keep, "sliding") for keep in (2, 17, Shortlist(3, blocks=1))),
    ],
)
def test_the_model_is_that_of_the_kept_alone(
    shortlist: int | Shortlist,
    window: Window,
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    picture: ImageArray,
) -> None:
    """Labels, to the last bit, are those of a vocabulary of the kept names, as indices of all."""
    seen = Kept()
    found = segmenter(picture, vocabulary, window=window, shortlist=shortlist, observer=seen)
    (kept,) = seen.rows  # one choice, also for five windows
    keep = shortlist.keep if isinstance(shortlist, Shortlist) else shortlist
    assert found.kept == len(kept) == seen.decoded == keep
    assert np.all(np.diff(kept) > 0)
    assert found.names == tuple(NAMES)
    alone = segmenter(picture, segmenter.vocabulary([NAMES[row] for row in kept]), window=window)
    np.testing.assert_array_equal(found.labels, kept[alone.labels])
    np.testing.assert_array_equal(found.confidence, alone.confidence)
    assert sum(found.area().values()) == pytest.approx(1)
    assert set(found.area()) <= {NAMES[row] for row in kept}
    plain = segmenter(picture, vocabulary, window=window, shortlist=shortlist)
    same(plain, found)


def test_one_category_is_all_there_is(segmenter: Segmenter, picture: ImageArray) -> None:
    alone = segmenter(picture, segmenter.vocabulary(["sky"]), shortlist=1)
    assert alone.kept == 1
    assert (alone.labels == 0).all()


def test_the_kept_are_those_with_the_least_margins(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """Of the graphs' own scores: the correlation, or what the first block makes of it."""
    full = Kept()
    segmenter(picture, vocabulary, observer=full)
    for stage, shortlist in (
        ("correlation", Shortlist(9)),
        ("esc0_text", Shortlist(9, blocks=1)),
    ):
        margin = margins([np.concatenate(full.scores[stage])])
        seen = Kept()
        segmenter(picture, vocabulary, shortlist=shortlist, observer=seen)
        assert sorted(seen.rows[0]) == sorted(np.argsort(margin, kind="stable")[:9])


def test_windows_share_one_choice_by_the_least_margin_of_all(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    model = segmenter.bundle.manifest.model
    plan = plan_windows(model.image_size, model.logits[0])
    looks = []
    for crop in crops(picture, plan):
        alone = Kept()
        segmenter(crop, vocabulary, observer=alone)
        looks.append(np.concatenate(alone.scores["correlation"]))
    seen = Kept()
    segmenter(picture, vocabulary, window="sliding", shortlist=6, observer=seen)
    assert seen.rows[0].tolist() == sorted(np.argsort(margins(looks), kind="stable")[:6])
    assert seen.stages[:6] == ["image_encoder"] * 5 + ["shortlist"]


def test_cosines_are_those_of_the_graph(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    features: list[Floats] = []
    scores: list[Floats] = []

    def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        if stage == "image_encoder":
            features.append(np.array(outputs["features"]))
        elif stage == "correlation":
            scores.append(np.array(outputs["scores"][: where.stop - where.start]))

    segmenter(picture, vocabulary, observer=observe)
    found = correlation(features[0], vocabulary.embeddings)
    np.testing.assert_allclose(found, np.concatenate(scores), atol=1e-5)


# What must not matter


@pytest.mark.parametrize("shortlist", [18, Shortlist(18, blocks=1)])
def test_chunks_change_nothing(
    shortlist: int | Shortlist,
    tiny_bundle: Path,
    cache: Path,
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    picture: ImageArray,
) -> None:
    first = Kept()
    want = segmenter(picture, vocabulary, shortlist=shortlist, observer=first)
    with Segmenter(tiny_bundle, chunk=48, cache=cache) as other:
        seen = Kept()
        found = other(picture, other.vocabulary(NAMES), shortlist=shortlist, observer=seen)
    np.testing.assert_array_equal(seen.rows[0], first.rows[0])
    np.testing.assert_array_equal(found.labels, want.labels)


def test_duplicates_and_synonyms_shift_no_index(segmenter: Segmenter, picture: ImageArray) -> None:
    names = ["sofa, couch", *NAMES[:20]]
    plain = segmenter(picture, segmenter.vocabulary(names), shortlist=6)
    doubled = ["sofa, couch", "couch, sofa", *NAMES[:3], NAMES[1].upper(), *NAMES[3:20]]
    found = segmenter(picture, segmenter.vocabulary(doubled), shortlist=6)
    assert found.kept == plain.kept == 6
    index = {name: place for place, name in reversed(list(enumerate(doubled)))}
    np.testing.assert_array_equal(found.labels, np.array([index[n] for n in names])[plain.labels])


def test_a_number_of_distinct_categories_is_meant(
    segmenter: Segmenter, picture: ImageArray
) -> None:
    """Twice two names: keeping two keeps all."""
    twice = segmenter.vocabulary(["sky", "tree", "SKY", "Tree"])
    found = segmenter(picture, twice, shortlist=2)
    same(found, segmenter(picture, twice))
    assert found.kept == 2


def test_auto_keeps_whole_groups(segmenter: Segmenter, picture: ImageArray) -> None:
    many = segmenter.vocabulary([*NAMES, *(f"small {name}" for name in NAMES)])
    seen = Kept()
    found = segmenter(picture, many, shortlist="auto", observer=seen)
    assert found.kept in (64, 80)
    assert found.kept == len(seen.rows[0])
    same(found, segmenter(picture, many, shortlist=found.kept))


@pytest.mark.parametrize(("temperature", "kept"), [(1e-6, 64), (10.0, 80)])
def test_what_is_near_is_told_by_the_bundles_own_temperature(
    temperature: float, kept: int, bundle_copy: Path, cache: Path, picture: ImageArray
) -> None:
    change_description(
        bundle_copy, lambda found: found["constants"]["ppg"].update(temperature=temperature)
    )
    with Segmenter(bundle_copy, cache=cache) as other:
        many = other.vocabulary([*NAMES, *(f"small {name}" for name in NAMES)])
        assert other(picture, many, shortlist="auto").kept == kept


def test_a_stream_has_a_shortlist_for_each_image(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    images = [picture, np.ascontiguousarray(255 - picture[::-1])]
    for image, found in zip(images, segmenter.stream(images, vocabulary, shortlist=3), strict=True):
        assert found.kept == 3
        same(found, segmenter(image, vocabulary, shortlist=3))


def test_threads_with_lists_of_their_own(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    lengths = [2, 5, 9, 16]
    want = {keep: segmenter(picture, vocabulary, shortlist=keep) for keep in lengths}
    found: dict[int, Segmentation] = {}

    def one(keep: int) -> None:
        found[keep] = segmenter(picture, vocabulary, shortlist=keep)

    threads = [threading.Thread(target=one, args=(keep,)) for keep in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for keep in lengths:
        same(found[keep], want[keep])
