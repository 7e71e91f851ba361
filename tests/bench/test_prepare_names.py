"""Names of a file beside a data set's own: their order counts, or they do."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escnet_bench.class_names import match_names, positions
from escnet_bench.prepare_command import main
from escnet_runtime.dataset import Dataset, require_distinct
from escnet_runtime.errors import InputError
from tests.bench.distributed import (
    ade_tree,
    coco_tree,
    context_tree,
    prepare,
    prepared,
    refused,
    voc_tree,
)
from tests.shared import shared_data

_OWN = ("wall", "building, edifice", "blind, screen", "crt screen", "monitor, monitoring device")


def _file(path: Path, names: Sequence[str]) -> Path:
    path.write_text(json.dumps(list(names)), encoding="utf-8")
    return path


# --- Matching ------------------------------------------------------------------------------------


@given(st.permutations(range(len(_OWN))))
def test_own_names_in_any_order_are_found(order: list[int]) -> None:
    names = [_OWN[index].upper().replace(" ", "_") for index in order]
    names = [name.replace(",_", ", ") for name in names]
    assert positions(names, _OWN, Path("a.json"), "own.txt") == tuple(order)
    main = [_OWN[index].split(",")[0] for index in order]
    assert positions(main, _OWN, Path("a.json"), "own.txt") == tuple(order)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c", "d", "e"],
        ["wall", "house", "window covering", "tube", "flat screen"],
        ["brick wall", "building", "screen", "tv, crt screen", "monitor"],
        # "monitor" is the name of another class, but the class's own stands behind it.
        ["wall", "building", "blind", "monitor, crt screen", "flat screen"],
    ],
)
def test_other_words_are_taken_in_the_data_sets_order(names: list[str]) -> None:
    assert positions(names, _OWN, Path("a.json"), "own.txt") == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["house", "wall", "blind", "tube", "x"], "'wall' is entry 2, class 1 there .'wall'."),
        (["wall", "house", "blind", "monitor", "x"], "'monitor' is entry 4, class 5 there"),
        (["monitor", "wall", "wall", "blind", "blind"], "not clearly one of own.txt: 'wall', "),
    ],
)
def test_own_names_at_wrong_places_among_others_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        positions(names, _OWN, Path("a.json"), "own.txt")


def test_what_fits_twice_is_not_clear() -> None:
    own = ["screen, silver screen", "screen, crt screen", "bag", "bag, purse"]
    names = ["screen", "bag", "purse, bag", "crt screen", ", "]
    assert match_names(names, own) == [None, 2, 3, 1, None]
    assert match_names(["bag", "bag"], own) == [None, None]
    assert match_names(["sack"], own, {"sack": "purse"}) == [3]


# --- The data sets -------------------------------------------------------------------------------


def test_pascal_context_59_in_the_alphabets_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As published lists have it; the data set's list of the 59 is in another order."""
    source = context_tree(tmp_path / "data")
    names = ["dining table", "Cloth", "bedclothes", *[f"thing {n}" for n in range(100, 156)]]
    names = sorted(names, key=str.casefold)
    words = ("--classes-file", _file(tmp_path / "pc59.json", names))
    for with_list in (True, False):
        if not with_list:
            (source / "VOCdevkit" / "VOC2010" / "59_labels.txt").unlink()
        dataset = prepared(capsys, "pascal-context-59", source, *words)
        assert list(dataset.names) == names
        places = [names.index(name) for name in ("dining table", "bedclothes", "Cloth")]
        expected = [255, *places, names.index("thing 100"), 255]
        assert next(iter(dataset)).labels.tolist() == [expected]


def test_pascal_context_59_with_names_that_cannot_be_matched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = context_tree(tmp_path / "data")
    own = ["diningtable", "bedcloth", "clothes", *[f"thing{n}" for n in range(100, 156)]]
    path = tmp_path / "names.json"
    words = ("pascal-context-59", source, "--classes-file", path)
    _file(path, ["a table to dine at", *own[1:]])  # a better word, in the order of the data set
    dataset = prepared(capsys, words[0], source, *words[2:])
    assert next(iter(dataset)).labels.tolist() == [[255, 0, 1, 2, 3, 255]]
    dataset.root.rename(tmp_path / "first")
    _file(path, ["a table to dine at", own[2], own[1], *own[3:]])
    assert "'clothes' is entry 2, class 3 there" in refused(capsys, *words)
    _file(path, [*own[:-1], "thing 1"])
    message = refused(capsys, *words)
    assert "of other classes than the 59 of 59_labels.txt: thing 1" in message
    (source / "VOCdevkit" / "VOC2010" / "59_labels.txt").unlink()
    _file(path, ["a table to dine at", *own[1:]])
    message = refused(capsys, *words)
    assert "not clearly one of labels.txt: a table to dine at" in message
    _file(path, own[:-1])
    assert "has 58 names; expected 59" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("kind", "tree"),
    [
        ("coco-stuff", coco_tree),
        ("ade20k-150", ade_tree),
        ("pascal-voc-20", voc_tree),
        ("pascal-voc-20b", voc_tree),
        ("pascal-context-459", context_tree),
    ],
)
def test_the_data_sets_names_in_another_order_keep_their_pixels(
    kind: str,
    tree: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source = tree(tmp_path / "data")
    plain = prepared(capsys, kind, source)
    shown = _named(plain)
    assert len({name for image in shown for name in image}) > 2
    background = plain.names[20:] if kind.endswith("20b") else ()
    names = list(plain.names[: len(plain.names) - len(background)])
    random.Random(0).shuffle(names)
    plain.root.rename(tmp_path / "plain")
    spelled = [name.replace(" ", "  ").upper() for name in names]
    path = _file(tmp_path / "names.json", spelled)
    output = tmp_path / "prepared"
    code, document = prepare(capsys, kind, source, "--output", output, "--classes-file", path)
    assert code == 0
    assert "names of names.json, in its order, which is not that of" in document["origin"]
    dataset = Dataset.open(output)
    assert dataset.names == (*spelled, *background)
    assert _named(replace(dataset, names=(*names, *background))) == shown
    names[0] = "something else"
    _file(path, names)
    shutil.rmtree(output)
    message = refused(capsys, kind, source, "--classes-file", path)
    assert "names.json is not in the order of" in message
    assert "'something else'" in message


def _named(dataset: Dataset) -> list[list[str]]:
    """The names of the pixels of each image."""
    names = (*dataset.names, "not labelled")
    return [
        [names[min(label, len(names) - 1)] for label in sample.labels.ravel().tolist()]
        for sample in dataset
    ]


def test_classes_of_one_name_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = voc_tree(tmp_path / "data")
    names = [f"better {index}" for index in range(19)]
    words = ("pascal-voc-20b", source, "--classes-file", tmp_path / "names.json")
    _file(tmp_path / "names.json", [*names, "Background"])  # which is added as the last
    assert "'Background' (19) and 'background' (20)" in refused(capsys, *words)


@pytest.mark.parametrize("name", ["ade150", "ade847", "coco", "pc59", "pc459", "voc20"])
def test_published_lists_have_no_class_twice(name: str) -> None:
    data = shared_data()
    if data is None:
        pytest.skip("no lists of class names beside this checkout")
    names = json.loads((data / "class_names" / f"{name}.json").read_text(encoding="utf-8"))
    require_distinct(names, name)


def test_without_the_data_sets_own_names_the_order_is_taken_with_a_warning(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, output = coco_tree(tmp_path / "coco"), tmp_path / "prepared"
    (source / "labels.txt").unlink()
    path = _file(tmp_path / "names.json", [f"name {index}" for index in range(171)])
    words = ("coco-stuff", str(source), "--output", str(output), "--classes-file", str(path))
    assert main(list(words)) == 0
    said = capsys.readouterr().err
    assert "warning: the names of names.json are taken in the data set's order, unchecked" in said
    marker = json.loads((output / "prepared.json").read_text(encoding="utf-8"))
    assert any("unchecked" in warning for warning in marker["warnings"])
    assert str(tmp_path) not in json.dumps(marker)


def test_published_lists_are_in_the_data_sets_order(tmp_path: Path) -> None:
    """CAT-Seg's names of VOC are the numbers' order; those of Context-59 the alphabet's."""
    data = shared_data()
    if data is None:
        pytest.skip("no lists of class names beside this checkout")
    lists = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in (data / "class_names").glob("*.json")
    }
    for name, names in lists.items():
        assert positions(names, names, tmp_path, "own.txt") == tuple(range(len(names))), name
    found = match_names(lists["pc59"], lists["pc459"], {"diningtable": "table"})
    assert [lists["pc459"][place] for place in found if place is not None] == [
        "table" if name == "diningtable" else name for name in lists["pc59"]
    ]
