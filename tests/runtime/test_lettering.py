"""Text in pictures: escapes, cuts and lines."""

import pytest
from PIL import ImageFont

from escnet_runtime import lettering


def test_letters_no_font_has_are_escaped() -> None:
    own_font_only = (ImageFont.load_default(14),)
    assert lettering.fit("cat", 500, 14).characters == "cat"
    for odd in ("a\nb", "a\tb", "a\u202eb", "a\x00b", "a\ud800b", "\U0010fffe"):
        assert lettering.fit(odd, 500, 14).characters == odd.encode("unicode_escape").decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lettering, "_fonts", lambda size: own_font_only)
        assert lettering.fit("猫 cat", 500, 14).characters == "\\u732b cat"


def test_long_names_are_cut_to_the_width() -> None:
    text = lettering.fit("x" * 100_000, 120, 14)
    assert text.characters.endswith("...")
    assert 100 < text.width <= 120


def test_marks_of_a_script_that_no_font_has_are_escaped_too() -> None:
    # Laid out, a mark that stands alone gets a dotted circle, and is not the font's box alone.
    fonts = (ImageFont.load_default(14), *lettering._fonts(14)[1:2])  # DejaVu Sans where it is here
    marks = "\u093f\u094d\u0940"  # of Devanagari
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lettering, "_fonts", lambda size: fonts)
        shown = lettering.fit(marks, 500, 14).characters
    assert shown == marks.encode("unicode_escape").decode()


def test_a_long_name_is_measured_a_few_times() -> None:
    measured = []
    getlength = ImageFont.FreeTypeFont.getlength

    def counted(font: ImageFont.FreeTypeFont, text: str) -> float:
        measured.append(text)
        return getlength(font, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFont.FreeTypeFont, "getlength", counted)
        # Letter by letter, an overlay of forty such names took more than ten minutes.
        text = lettering.fit("\u732b" * 5000, 15 * 32, 32)
    assert len(measured) < 20
    assert text.characters.endswith("...")


def test_notes_are_wrapped() -> None:
    lines = lettering.wrap("one two three four five six seven " + "w" * 99, 100, 14)
    assert len(lines) > 3
    assert all(line.width <= 100 for line in lines)
    assert lines[0].characters.startswith("one two")
