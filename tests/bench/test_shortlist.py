"""``escnet-bench shortlist``: names that distract, rows that agree with the library, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from escnet_bench.command import main
from escnet_bench.distractors import enlarged, world_distractors
from escnet_bench.shortlist import measure_shortlists, variants
from escnet_runtime import InputError, Segmenter
from escnet_runtime.images import load_image
from escnet_runtime.shortlist import Shortlist
from escnet_runtime.world.words import COLOURS, SHAPES, TEXTURES, evaluation_vocabulary
from tests.bench.folders import made_dataset, save_image

Captured = pytest.CaptureFixture[str]


def run_json(capsys: Captured, *words: str | Path) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main(["shortlist", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_words_of_the_world_make_thousands_of_names() -> None:
    found = world_distractors()
    assert len(found) == len(set(found)) > 4000
    assert not set(found) & set(evaluation_vocabulary())
    known = {*COLOURS, *TEXTURES, *SHAPES}
    assert {word for name in found for word in name.split()} <= known
    # Real names of training come first, and they are all that there are.
    assert all(len(name.split()) <= 3 for name in found[:536])
    assert len(evaluation_vocabulary()) + 536 == 730


def test_distractors_come_behind_the_names_and_repeat_none() -> None:
    names = enlarged(["sky", "tree, plant"], ["Sky", "plant", "car", "auto, car", "boat"], 4)
    assert names == ("sky", "tree, plant", "car", "boat")
    with pytest.raises(InputError, match=r"got 5 categories; .* make 4"):
        enlarged(["sky", "tree, plant"], ["Sky", "plant", "car", "auto, car", "boat"], 5)
    with pytest.raises(InputError, match="expected at least 2"):
        enlarged(["sky", "tree"], [], 1)


def test_auto_is_for_the_correlation() -> None:
    made = variants([3, "auto", 3], ["correlation", "first-block"])
    assert made == [Shortlist(3), Shortlist("auto"), Shortlist(3, blocks=1)]


def test_rows_are_what_the_library_gives(
    tiny_bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder, words, output = tmp_path / "data", tmp_path / "words.txt", tmp_path / "out.json"
    made_dataset(folder)
    words.write_text("\n".join(f"thing {i}" for i in range(20)), encoding="utf-8")
    options = ("--categories", "3", "20", "--shortlist", "2", "auto", "--distractors", words)
    where = ("--where", "correlation", "first-block", "--output", output)
    code, document = run_json(capsys, tiny_bundle, folder, *options, *where)
    assert code == 0
    rows = document["rows"]
    key = ("categories", "shortlist", "where", "kept_max")
    assert [tuple(row[name] for name in key) for row in rows[:4]] == [
        (3, None, None, 3),
        (3, 2, "correlation", 2),
        (3, "auto", "correlation", 3),
        (3, 2, "first-block", 2),
    ]
    for full in (rows[0], rows[4]):
        assert (full["speedup"], full["agreement"], full["miou_loss"]) == (1, 1, 0)
    assert rows[2]["agreement"] == 1  # of three, auto drops none
    assert all(row["images"] == 2 and row["classes"] == 3 and row["p50_ms"] > 0 for row in rows)
    names = (*json.loads((folder / "classes.json").read_text()), *words.read_text().split("\n"))
    equal = []
    with Segmenter(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(names[:20])
        for path in sorted((folder / "images").iterdir()):
            image = load_image(path)
            some = segmenter(image, vocabulary, shortlist=2).labels
            equal.append((some == segmenter(image, vocabulary).labels).ravel())
    assert rows[5]["agreement"] == pytest.approx(np.concatenate(equal).mean(), abs=1e-6)
    assert json.loads(output.read_text(encoding="utf-8")) == document
    assert str(tmp_path) not in output.read_text(encoding="utf-8")


def test_a_row_sets_a_shortlist_against_the_full_model() -> None:
    """Three images on a made-up clock: the full model takes 4, 9 and 2 s, the shortlist half of
    that, a third of it and as long; of 12 labels three are others, two of them wrong.
    """
    truth = np.zeros((2, 2), np.uint8)
    truth[1] = 1
    clock = [0.0]
    length: Any = {None: iter([1.0, 4, 9, 2]), 2: iter([1.0, 2, 3, 2])}
    kept: Any = {None: iter([5] * 4), 2: iter([2, 2, 2, 1])}
    wrong = truth.copy()
    wrong[0, 0] = 4  # a distractor
    full = iter([truth, truth, truth, wrong])
    short = iter([truth, wrong, wrong, truth])

    class Segmenting:
        def vocabulary(self, names: tuple[str, ...]) -> Any:
            return SimpleNamespace(names=names, embeddings=np.eye(4))

        def __call__(self, image: Any, vocabulary: Any, shortlist: Shortlist | None) -> Any:
            which = None if shortlist is None else shortlist.keep
            clock[0] += next(length[which])
            labels = next(full if which is None else short)
            return SimpleNamespace(labels=labels, kept=next(kept[which]))

    class Three:
        names = ("a", "b")

        def __len__(self) -> int:
            return 3

        def each(self) -> Any:
            return [(np.zeros((2, 2, 3), np.uint8), truth)] * 3

    with pytest.MonkeyPatch.context() as patched:
        now = SimpleNamespace(perf_counter=lambda: clock[0])
        patched.setattr("escnet_bench.shortlist.time", now)
        segmenting: Any = Segmenting()
        rows = measure_shortlists(
            segmenting, Three(), ["c", "d", "e"], [5], [Shortlist(2)], step=lambda *_, **__: None
        )
    ours, other = rows
    assert (ours.p50_ms, other.p50_ms) == (4000, 2000)
    assert (ours.speedup, other.speedup) == (1, 2)  # the median of 2, 3 and 1
    assert other.kept_mean == pytest.approx(5 / 3)
    assert (other.kept_max, ours.kept_max) == (2, 5)
    assert (ours.categories, ours.distinct_categories, ours.classes) == (5, 4, 2)
    assert ours.pixel_accuracy == pytest.approx(11 / 12)
    assert other.pixel_accuracy == pytest.approx(10 / 12)
    assert ours.miou == pytest.approx((5 / 6 + 1) / 2)
    assert other.miou == pytest.approx((4 / 6 + 1) / 2)
    assert other.miou_loss == pytest.approx(1 / 12)
    assert (ours.miou_loss, ours.agreement) == (0, 1)
    assert other.agreement == pytest.approx(9 / 12)


def test_photos_without_labels_have_agreement_alone(
    tiny_bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("sky\ntree\ncar\n", encoding="utf-8")
    save_image(tmp_path / "photos" / "one.png", 20, 30)
    options = ("--categories", "3", "--shortlist", "1", "--distractors", words)
    code, document = run_json(capsys, tiny_bundle, tmp_path / "photos", *options)
    assert code == 0
    full, one = document["rows"]
    assert full["miou"] is one["miou"] is one["miou_loss"] is one["classes"] is None
    assert 0 <= one["agreement"] <= 1
    assert main(["shortlist", str(tiny_bundle), str(tmp_path / "photos"), *map(str, options)]) == 0
    assert "1, correlation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shortlist", "0"], "--shortlist is 0"),
        (["--shortlist", "few"], "--shortlist is 'few'"),
        (["--categories", "0"], "--categories has 0"),
        (["--categories", "193", "--limit", "1"], "expected at least 194"),
        (["--categories", "30000", "--limit", "1"], "give more of them"),
        (["--limit", "0"], "--limit is 0"),
        (["--where", "decoder"], "invalid choice"),
        (["--where", "first-block", "--shortlist", "auto"], "--shortlist auto is for"),
        (["--distractors", "no-such-file"], "no-such-file"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(
    words: list[str], message: str, tiny_bundle: Path, capsys: Captured
) -> None:
    code, document = run_json(capsys, tiny_bundle, "shapes:heldout", *words)
    assert code == 2
    assert message in document["error"]["message"]
