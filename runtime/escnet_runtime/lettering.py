"""Text in pictures: a font that can draw it, cut to a width, in lines.

What no font of this machine draws is written as escapes, so that a name of any script, and one with
control characters in it, is readable and harmless.
"""

import bisect
import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageDraw, ImageFont

from escnet_runtime.errors import ImageError

__all__ = ["Text", "fit", "wrap"]

_FONT_FILES = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf")
_NO_CHARACTER = "\U0010ffff"  # never assigned, so a font draws its box for "missing"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Characters and a font that can draw them all."""

    characters: str
    font: ImageFont.FreeTypeFont

    @property
    def width(self) -> int:
        return math.ceil(self.font.getlength(self.characters))

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, colour: tuple[int, ...]) -> None:
        draw.text((x, y), self.characters, fill=colour, font=self.font, anchor="lm")


def fit(text: str, width: int, size: int) -> Text:
    """The text in the first font that draws all of it, cut to a width in px."""
    text = text[:width]  # no letter is narrower than a pixel
    fonts = _fonts(size)
    font = min(fonts, key=lambda font: sum(not _draws(font, character) for character in text))
    characters = [c if _draws(font, c) else c.encode("unicode_escape").decode() for c in text]
    whole = Text(characters="".join(characters), font=font)
    if whole.width <= width:
        return whole
    # Halving: a long text is measured a few times, not once for each letter that is left out.
    kept = bisect.bisect_left(
        range(1, len(characters) + 1),
        True,
        key=lambda count: font.getlength("".join(characters[:count]) + "...") > width,
    )
    return Text(characters="".join(characters[:kept]) + "...", font=font)


def wrap(text: str, width: int, size: int) -> list[Text]:
    """The words of a text in lines of at most a width in px."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and fit(longer, 10 * width, size).width > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fit(line, width, size) for line in lines]


@lru_cache(maxsize=32)
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    """Pillow's own font (Latin letters without accents), then what this machine has of others."""
    own = ImageFont.load_default(size)
    if not isinstance(own, ImageFont.FreeTypeFont):
        raise ImageError(
            "this Pillow was built without FreeType, which draws letters; install Pillow from its "
            "wheels, or ask for an overlay with legend=False"
        )
    fonts = [own]
    for file in _FONT_FILES:
        try:
            fonts.append(ImageFont.truetype(file, size))
        except OSError:  # not on this machine: what it would draw is shown as escapes
            continue
    return tuple(fonts)


@lru_cache(maxsize=8192)
def _draws(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether the font has a glyph for a character that is not a control character."""
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return False
    plain = _without_layout(font)
    return bytes(plain.getmask(character)) != bytes(plain.getmask(_NO_CHARACTER))


@lru_cache(maxsize=32)
def _without_layout(font: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    """The font letter by letter: a layout adds a dotted circle to a mark that stands alone."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
