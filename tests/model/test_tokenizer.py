"""tokenizer.json gives open_clip's ids for every text."""

import html
import json
import unicodedata
from pathlib import Path

import ftfy
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, whitespace_clean

from escnet.tokenizer import build_tokenizer, write_tokenizer
from escnet_runtime.errors import (
    BundleFormatError,
    BundleIntegrityError,
    InputError,
    VocabularyError,
)
from escnet_runtime.tokenizer import END, START, Tokenizer, clean_text
from tests.shared import shared_data

_LENGTH = 77


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full tokenizer as a file."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    """The full tokenizer as the runtime reads it."""
    return Tokenizer.open(file, _LENGTH)


@pytest.fixture(scope="module")
def reference() -> SimpleTokenizer:
    """What it must agree with."""
    return SimpleTokenizer()


def _assert_same(tokenizer: Tokenizer, reference: SimpleTokenizer, texts: list[str]) -> None:
    got = tokenizer.encode(texts)
    expected = reference(texts).numpy()
    ends = [int(np.flatnonzero(row == reference.eot_token_id).min()) + 1 for row in expected]
    for row, end in zip(expected, ends, strict=True):
        row[end:] = 0  # what CLIP does not look at
    length = max(ends)
    assert got.dtype == np.int32
    assert got.shape == (len(texts), length)
    np.testing.assert_array_equal(got, expected[:, :length])
    assert not expected[:, length:].any()


EXAMPLES = [
    "",
    " ",
    "a photo of a cat",
    "A Photo of a CAT's dog, they'll we've I'd 'S",
    "living-room & tv_monitor #1, 2024",
    "tom &amp; jerry &amp;lt;b&amp;gt; &eacute; &#x1F600;",
    "<i> &amp;eacute; &amp;amp;lt; x",
    "schÃ¶n â€œquotedâ€\x9d",
    "  white\t\n space\u00a0\u2003\u3000here ",
    "crème brûlée, cre\u0300me",
    "Straße İstanbul ΟΔΟΣ Ǆ ﬁre ﬅop ſun it'ſ",
    "猫と犬 кошка 고양이 قطة बिल्ली",
    "🐈‍⬛ 👩🏽‍🚀 🇪🇺 1️⃣ 🫠",
    "\x00\x1b[31mred\x7f\u200b\ufeff\u202e\u0345",
    "\ud800 lone",
    "!!!???...,,,;;;",
    "<start_of_text> a <end_of_text> b",
    "1234567890 ½ Ⅷ ٣",
    "x" * 500,
    "cat " * 200,
    "!" * 3000,
    "the quick brown fox " * 500,
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_ids_are_those_of_open_clip(
    tokenizer: Tokenizer, reference: SimpleTokenizer, text: str
) -> None:
    _assert_same(tokenizer, reference, [text])


def test_a_batch_is_as_long_as_its_longest(
    tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    _assert_same(tokenizer, reference, EXAMPLES)
    _assert_same(tokenizer, reference, ["cat", "a photo of a cat"])
    assert tokenizer.encode(["cat", "dog"]).shape == (2, 3)
    assert tokenizer.encode([]).shape == (0, 0)


def test_a_long_text_is_cut_and_keeps_its_end(file: Path, reference: SimpleTokenizer) -> None:
    short = Tokenizer.open(file, 8).encode(["cat " * 50])
    np.testing.assert_array_equal(short, reference(["cat " * 50], context_length=8).numpy())
    assert short[0, -1] == reference.eot_token_id


def test_what_is_cut_is_told(file: Path) -> None:
    tokenizer = Tokenizer.open(file, 8)
    assert tokenizer.cut(["cat " * 6, "cat " * 7, "", "a dog"]) == ["cat " * 7]
    assert tokenizer.cut([]) == []


def test_a_text_ends_at_its_first_end(tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    """A name may spell the end token; CLIP reads at the first one and sees nothing behind it."""
    got = tokenizer.encode(["red ball <end_of_text> blue ring", "red ball"])
    np.testing.assert_array_equal(got[0], got[1])
    assert (got == reference.eot_token_id).sum(axis=1).tolist() == [1, 1]


def test_ids_of_all_published_class_names(tokenizer: Tokenizer, reference: SimpleTokenizer) -> None:
    data = shared_data()
    if data is None:
        pytest.skip("needs shared/data/class_names")
    names = {
        name
        for path in sorted((data / "class_names").glob("*.json"))
        for name in json.loads(path.read_text())
    }
    assert len(names) > 1000
    _assert_same(tokenizer, reference, sorted(names))
    _assert_same(tokenizer, reference, [f"A photo of a {name} in the scene" for name in names])


# The regular expressions of the two libraries know different versions of Unicode, so unassigned
# characters are left out, also those that cleaning makes ("Ö\x8b" are the bytes of one in UTF-8);
# and see `build_tokenizer` on special tokens behind punctuation.
_TEXT = st.text(st.characters(exclude_categories=["Cn", "Co"]), max_size=40).filter(
    lambda text: (
        "_of_text" not in text.lower()
        and not {unicodedata.category(one) for one in clean_text(text)} & {"Cn", "Co"}
    )
)
_MARKUP = st.lists(
    st.sampled_from(["&amp;", "&lt;", "&#233;", "&#x1F431;", "&copy", "&nbsp;", "'s", "'LL", "é"])
    | st.text(st.characters(codec="ascii"), max_size=4),
    max_size=12,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(texts=st.lists(_TEXT | _MARKUP, min_size=1, max_size=4))
@example(texts=["a" * 76, "&amp;amp;amp;lt;"])
def test_ids_of_any_text(
    tokenizer: Tokenizer, reference: SimpleTokenizer, texts: list[str]
) -> None:
    _assert_same(tokenizer, reference, texts)


def test_every_assigned_character_is_of_the_same_kind(
    tokenizer: Tokenizer, reference: SimpleTokenizer
) -> None:
    characters = [
        chr(code)
        for code in range(0x3100)
        if unicodedata.category(chr(code)) not in {"Cn", "Co", "Cs"}
    ]
    texts = [f"a{character}b!{character}!1" for character in characters]
    _assert_same(tokenizer, reference, texts)


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii")) | st.text())
def test_cleaning_is_that_of_open_clip(text: str) -> None:
    expected = whitespace_clean(html.unescape(html.unescape(ftfy.fix_text(text)))).lower()
    assert clean_text(text) == expected


def test_cleaned_texts_are_not_cleaned_twice(tokenizer: Tokenizer) -> None:
    text = "a &amp;amp;amp;lt; b"
    np.testing.assert_array_equal(
        tokenizer.encode([clean_text(text)], cleaned=True), tokenizer.encode([text])
    )


def test_the_file_alone_serves_plain_text(file: Path, reference: SimpleTokenizer) -> None:
    plain = tokenizers.Tokenizer.from_file(str(file))
    texts = ["A Photo  of a\tCAT ", "crème brûlée, it's 猫"]
    expected = reference(texts).numpy()
    for row, encoding in zip(expected, plain.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(encoding.ids, row[: len(encoding.ids)])


def test_a_small_vocabulary_is_the_same_scheme(tmp_path: Path, reference: SimpleTokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    write_tokenizer(path, vocab_size=4096)
    assert build_tokenizer(4096).get_vocab_size() == 4096
    small = Tokenizer.open(path, _LENGTH)
    names = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    for text in ("a photo of a cat", "zygote's 猫", ""):
        (row,) = small.encode([text])
        assert row[0] == 4094
        assert row[-1] == 4095
        assert row.max() < 4096
        pieces = {index: piece for piece, index in names.items()}
        spelled = "".join(pieces[index] for index in row[1:-1].tolist())
        full = "".join(reference.decoder[index] for index in reference.encode(text))
        assert spelled == full
    for piece, index in names.items():
        if index < 4094:
            assert reference.encoder[piece] == index


@pytest.mark.parametrize("size", [0, 513, 49409])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"between 514 and 49408; got {size}"):
        build_tokenizer(size)


def test_the_smallest_vocabulary_is_bytes_alone() -> None:
    assert build_tokenizer(514).encode("cat").ids == [512, 66, 64, 256 + 83, 513]


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BundleIntegrityError, match="Cannot read the tokenizer"):
        Tokenizer.open(path, _LENGTH)
    for data in (b"", b"{}", b'{"model": 3}'):
        path.write_bytes(data)
        with pytest.raises(BundleFormatError, match="is not a tokenizer"):
            Tokenizer.open(path, _LENGTH)
    path.write_bytes(b"\xff")
    with pytest.raises(BundleFormatError, match="not UTF-8"):
        Tokenizer.open(path, _LENGTH)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(BundleFormatError, match=f"expected.*{START}.*{END}"):
        Tokenizer.open(path, _LENGTH)
    with pytest.raises(BundleFormatError, match="3 or more; got 2"):
        Tokenizer.open(file, 2)


@pytest.mark.parametrize("texts", ["cat", [3], [None], [b"cat"]])
def test_what_is_no_list_of_texts_is_refused(tokenizer: Tokenizer, texts: list[str]) -> None:
    with pytest.raises(VocabularyError, match="Expected a list of texts"):
        tokenizer.encode(texts)
