"""Categories are read, made distinct, planned and averaged as promised."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from escnet_runtime.errors import VocabularyError
from escnet_runtime.vocabulary import (
    MAX_CATEGORIES,
    TextPlan,
    assemble,
    find_duplicates,
    parse_classes,
    plan_texts,
    read_classes_file,
)

_PHOTO = ("a photo of a {}",)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _embed(plan: TextPlan, width: int = 8) -> NDArray[np.float32]:
    """Stand in for the text encoder: every text has its own unit vector, the same in any batch."""
    rows = [
        np.random.default_rng(list(prompt.encode())).standard_normal(width)
        for prompt in plan.prompts
    ]
    return _unit(np.array(rows))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat", ["cat"]),
        ("cat, sofa,wall", ["cat", "sofa", "wall"]),
        ("cat,", ["cat"]),
        (" cat ,, sofa ", ["cat", "sofa"]),
        ("cat; sofa, couch", ["cat", "sofa, couch"]),
        ("cat;sofa,couch;", ["cat", "sofa, couch"]),
        ("sofa, couch;", ["sofa, couch"]),
        ("cat\nsofa, couch\n", ["cat", "sofa, couch"]),
        ("cat\r\nsofa ,couch;wall\n\n", ["cat", "sofa, couch", "wall"]),
        ("traffic light", ["traffic light"]),
        ("猫、犬,鳥", ["猫、犬", "鳥"]),
    ],
)
def test_categories_of_a_command_line(text: str, names: list[str]) -> None:
    assert parse_classes(text) == names


@pytest.mark.parametrize("text", ["", " ", ",", ";\n, ;", "\n"])
def test_a_command_line_without_categories_is_refused(text: str) -> None:
    with pytest.raises(VocabularyError, match="No category"):
        parse_classes(text)


def test_a_text_file_of_categories(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeff# animals\r\ncat\r\n\r\n  # more\r\nsofa, couch\r\nC# 猫".encode())
    assert read_classes_file(path) == ["cat", "sofa, couch", "C# 猫"]


def test_a_json_file_of_categories(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('\ufeff["cat", "bed ", "sofa, couch", "#1"]', encoding="utf-8")
    assert read_classes_file(path) == ["cat", "bed", "sofa, couch", "#1"]
    assert read_classes_file(path.rename(tmp_path / "names")) == read_classes_file(
        tmp_path / "names"
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.json", b'["cat",\n"dog"', r"c\.json, line 2: not JSON"),
        (
            "c.json",
            b"cat\ndog\n",
            r'not JSON: .*; expected a list such as \["cat", "sofa, couch"\]',
        ),
        ("c.json", b'{"cat": 1}', r"c\.json, line 1: expected a JSON list.*got dict"),
        ("c.json", b'["cat", 3]', r"c\.json, entry 2: expected the name of a category; got 3"),
        ("c.json", b'["cat", ["sofa", "couch"]]', r"entry 2.*one text"),
        ("c.json", b'["cat", " "]', r"c\.json, entry 2"),
        ("c.json", b"[]", r"c\.json, line 1: no category"),
        ("c.json", b"[" * 100_000, r"c\.json, line 1: not a JSON list"),
        ("c.txt", b"", r"c\.txt, line 1: no category"),
        ("c.txt", b"# cat\n\n", "no category"),
        ("c.txt", b"cat\nd\xf6g\n", r"c\.txt, line 2: not UTF-8"),
        ("c.txt", b"cat\ndog\na\x00b", r"c\.txt, line 3: control characters"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VocabularyError, match=message):
        read_classes_file(tmp_path / name)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"missing\.txt: No such file"):
        read_classes_file(tmp_path / "missing.txt")
    with pytest.raises(VocabularyError, match="Is a directory"):
        read_classes_file(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(VocabularyError, match="larger than 16 MiB"):
        read_classes_file(tmp_path / "large")


def test_every_template_meets_every_synonym() -> None:
    plan = plan_texts(["Cat", "sofa,  couch"], ["a photo of a {}", "the {}!"])
    assert plan.names == ("Cat", "sofa,  couch")
    assert plan.prompts == (
        "a photo of a cat",
        "the cat!",
        "a photo of a sofa",
        "a photo of a couch",
        "the sofa!",
        "the couch!",
    )
    assert plan.members.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan.starts.tolist() == [0, 2]
    assert plan.label_of.tolist() == [0, 1]
    assert plan.label_of.dtype == np.uint16


def test_a_synonym_of_two_categories_is_encoded_once() -> None:
    plan = plan_texts(["sofa, couch", "couch, bench"], _PHOTO)
    assert len(plan.prompts) == 3
    assert plan.members.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat", "cat"], [0]),
        (["cat", "dog", " CAT ", "bird"], [0, 1, 3]),
        (["sofa, couch", "Couch,  sofa", "sofa"], [0, 2]),
        (["cat, cat", "cat"], [0]),
        (["tom&amp;jerry", "tom&jerry"], [0]),
        (["caf\u00e9", "cafe\u0301"], [0]),
        (["Stra\u00dfe", "STRASSE"], [0, 1]),  # CLIP embeds them differently
        (["living  room", "living\troom"], [0]),
        (["1,000", "1, 000"], [0, 1]),
    ],
)
def test_duplicates_have_no_row_and_shift_no_index(names: list[str], labels: list[int]) -> None:
    plan = plan_texts(names, _PHOTO)
    assert plan.label_of.tolist() == labels
    assert plan.names == tuple(name.strip() for name in names)


def test_duplicates_are_found_with_their_first() -> None:
    assert find_duplicates(["cat", "dog", "Cat ", "cat, kitten", "kitten, cat", "CAT"]) == {
        2: 0,
        4: 3,
        5: 0,
    }
    assert find_duplicates(["cat", "cats"]) == {}
    with pytest.raises(VocabularyError, match="Category 1"):
        find_duplicates(["cat", " "])


def test_duplicates_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan_texts(["cat", "dog", "CAT", "Dog"], _PHOTO)
        plan_texts(["cat", "dog"], _PHOTO)
    (record,) = caplog.records
    assert "'CAT' (2, as 0), 'Dog' (3, as 1)" in record.getMessage()


def test_a_long_list_of_duplicates_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    plan_texts(["cat"] * 5000, _PHOTO)
    (record,) = caplog.records
    assert record.getMessage().endswith("and 4989 more")


def test_a_comma_that_separates_nothing_is_named(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_texts(["sofa,couch", "1,000 yen note", "cat, kitten", "犬,狗", "a,1"], _PHOTO)
    (record,) = caplog.records
    assert "belongs to the name: 'sofa,couch', '犬,狗'; put a space" in record.getMessage()
    assert len(plan.prompts) == 6


def test_any_iterable_of_texts_will_do() -> None:
    plan = plan_texts(["cat", "dog"], ["a {}"])
    for names, templates in (
        ((name for name in ("cat", "dog")), iter(["a {}"])),
        (np.array(["cat", "dog"]), np.array(["a {}"])),
        ({"cat": 1, "dog": 2}, {"a {}"}),
    ):
        other = plan_texts(names, templates)
        assert (other.names, other.prompts) == (plan.names, plan.prompts)


def test_duplicates_change_no_embedding() -> None:
    names = ["cat", "sofa, couch", "wall"]
    plain = plan_texts(names, _PHOTO)
    doubled = plan_texts(["cat", "Cat", "sofa, couch", "COUCH, sofa", "wall", "wall"], _PHOTO)
    alone = assemble(plain, _embed(plain))
    among = assemble(doubled, _embed(doubled))
    np.testing.assert_array_equal(alone.embeddings, among.embeddings)
    assert among.label_of.tolist() == [0, 2, 4]


def test_embeddings_are_the_normalised_mean() -> None:
    plan = plan_texts(["cat", "sofa, couch", "a, b, c"], ["a {}", "the {}"])
    rows = _embed(plan)
    vocabulary = assemble(plan, rows)
    expected = np.array([rows[0:2].mean(0), rows[2:6].mean(0), rows[6:12].mean(0)], dtype=float)
    np.testing.assert_allclose(vocabulary.embeddings, _unit(expected), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vocabulary.embeddings, axis=1), 1, atol=1e-6)
    assert vocabulary.embeddings.dtype == np.float32
    assert vocabulary.templates == ("a {}", "the {}")
    assert not vocabulary.embeddings.flags.writeable


def test_the_order_of_synonyms_shows_in_no_bit() -> None:
    words = [f"word {number}" for number in range(12)]
    for count in range(2, 13):
        plans = [
            plan_texts([", ".join(order)], _PHOTO) for order in (words[:count], words[:count][::-1])
        ]
        first, last = (assemble(plan, _embed(plan)).embeddings for plan in plans)
        np.testing.assert_array_equal(first, last)


def test_many_prompts_are_averaged_in_parts_with_the_same_result() -> None:
    names = [f"thing {number}" for number in range(300)]
    plan = plan_texts(names, [f"{number} {{}}" for number in range(80)])  # 24,000 prompts
    rows = _unit(np.random.default_rng(0).standard_normal((len(plan.prompts), 4)))
    expected = _unit(rows.reshape(300, 80, 4).astype(np.float64).sum(1))
    np.testing.assert_allclose(assemble(plan, rows).embeddings, expected, atol=1e-5)


def test_a_category_with_more_prompts_than_fit_a_part() -> None:
    plan = plan_texts(["cat", "dog"], [f"{number} {{}}" for number in range(9000)])
    rows = _unit(np.random.default_rng(0).standard_normal((len(plan.prompts), 4)))
    expected = _unit(rows.reshape(2, 9000, 4).astype(np.float64).sum(1))
    np.testing.assert_allclose(assemble(plan, rows).embeddings, expected, atol=1e-4)


def test_embeddings_that_do_not_fit_are_refused() -> None:
    plan = plan_texts(["cat", "dog, hound"], _PHOTO)
    rows = _embed(plan)
    for wrong in (rows[:2], rows[0], rows[None]):
        with pytest.raises(VocabularyError, match=r"Expected prompt embeddings \[3, D\]"):
            assemble(plan, wrong)
    rows[2] = -rows[1]
    with pytest.raises(VocabularyError, match="'dog, hound' is zero or not finite"):
        assemble(plan, rows)
    rows[0] = np.nan
    with pytest.raises(VocabularyError, match="'cat' is zero or not finite"):
        assemble(plan, rows)


@pytest.mark.parametrize(
    "name", ["!", ",", "...", "{}", "%s", "🙂", "𝔘", "x" * 10_000, "a\nb", "&"]
)
def test_unusual_names_are_fine(name: str) -> None:
    plan = plan_texts([name], _PHOTO)
    assert plan.names == (name,)
    assert len(plan.prompts) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat", r"pass \['cat'\]"),
        ([], "1 to 65,535 categories; got 0"),
        (["cat"] * (MAX_CATEGORIES + 1), "got 65,536"),
        (["cat", ""], "Category 1: expected a name; got ''"),
        (["cat", " \t"], "Category 1: expected a name"),
        (["cat", 3], "Category 1: expected a name; got 3"),
        ([None], "Category 0: expected a name; got None"),
        ([["sofa", "couch"]], "Category 0: expected a name"),
        # As Python reads a Latin-1 command line in a locale of UTF-8.
        (["cat", "B\udce4r"], r"Category 1: 'B\\udce4r' has bytes"),
        (["\x00"], "nothing is left of"),
        (None, "a list of categories; got NoneType"),
        (np.array("cat"), "a list of categories; got ndarray"),
        (iter([]), "1 to 65,535 categories; got 0"),
    ],
)
def test_names_that_cannot_be_used(names: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        plan_texts(names, _PHOTO)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("a {}", "pass "),
        ([], "at least one template"),
        (["a photo"], 'exactly one "{}"'),
        (["{} and {}"], 'exactly one "{}"'),
        (["a { }"], 'exactly one "{}"'),
        (["\udcfcber {}"], r"A template: '\\udcfcber \{\}' has bytes"),
        ([3], "got 3"),
        (7, "a list of templates; got int"),
        (np.array([1.5]), "got "),
    ],
)
def test_templates_that_cannot_be_used(templates: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        plan_texts(["cat"], templates)


@pytest.mark.parametrize(("count", "kind"), [(256, np.uint8), (257, np.uint16)])
def test_rows_become_labels_of_names(count: int, kind: type[np.integer]) -> None:
    plan = plan_texts(
        [*(f"thing {index}" for index in range(count - 2)), "thing 0", "last"], _PHOTO
    )
    words = assemble(plan, _embed(plan), model="test")
    last = len(words.embeddings) - 1  # "thing 0" has one row
    found = words.labels(np.array([[0, last]], np.uint16))
    assert found.dtype == kind
    assert found.tolist() == [[0, count - 1]]
    found = words.labels(np.array([1, 0], np.uint8), np.array([3, last]))
    assert found.tolist() == [count - 1, 3]


def test_the_largest_vocabulary_keeps_its_last_index() -> None:
    plan = plan_texts([str(number) for number in range(MAX_CATEGORIES)], _PHOTO)
    assert plan.label_of[-1] == MAX_CATEGORIES - 1


def test_twenty_thousand_categories_are_planned_in_a_second() -> None:
    names = [f"category {number}" for number in range(20_000)]
    begin = time.process_time()
    plan_texts(names, _PHOTO)
    assert time.process_time() - begin < 1


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_any_names_are_planned_or_refused(names: list[str]) -> None:
    try:
        plan = plan_texts(names, _PHOTO)
    except VocabularyError:
        return
    assert len(plan.label_of) == len(plan.starts) <= len(names)
    assert sorted(set(plan.members.tolist())) == list(range(len(plan.prompts)))
    vocabulary = assemble(plan, _embed(plan, width=64))
    assert np.isfinite(vocabulary.embeddings).all()
