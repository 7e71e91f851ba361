"""Text and pictures put together on white paper."""

from collections.abc import Sequence
from typing import Final, TypeAlias

from PIL import Image, ImageDraw

from escnet_runtime.lettering import fit, wrap

__all__ = ["GAP", "INK", "PAPER", "Colour", "in_columns", "line", "paragraph", "stacked"]

Colour: TypeAlias = tuple[int, int, int]

PAPER: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (24, 24, 24)
#: Between pictures, px.
GAP: Final = 8


def line(text: str, size: int, width: int, colour: Colour = INK) -> Image.Image:
    """A text in letters of ``size`` px in one line, cut to a width in px."""
    panel = Image.new("RGB", (width, round(1.4 * size)), PAPER)
    fit(text, width, size).draw(ImageDraw.Draw(panel), 0, panel.height // 2, colour)
    return panel


def paragraph(text: str, size: int, width: int, colour: Colour = INK) -> Image.Image:
    """A text in letters of ``size`` px, in as many lines of a width in px as it needs."""
    lines = wrap(text, width, size)
    step = round(1.3 * size)
    panel = Image.new("RGB", (width, len(lines) * step), PAPER)
    draw = ImageDraw.Draw(panel)
    for number, words in enumerate(lines):
        words.draw(draw, 0, number * step + step // 2, colour)
    return panel


def stacked(parts: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures one below the other, ``gap`` px apart."""
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    stack = Image.new("RGB", (max(part.width for part in parts), height), PAPER)
    top = 0
    for part in parts:
        stack.paste(part, (0, top))
        top += part.height + gap
    return stack


def in_columns(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, their tops in line."""
    width = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    row = Image.new("RGB", (width, max(part.height for part in parts)), PAPER)
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width + GAP
    return row
