"""A picture of the small world: its words, its scenes with their labels, its captions."""

import textwrap
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..palette import palette
from .captions import caption_crops
from .fields import Floats
from .figures import Light, make_figure, paint_figure
from .scene import render_scene
from .words import COLOURS, HELD_OUT, SHAPES, TEXTURES, Composition, Split

__all__ = ["contact_sheet"]

_COLUMNS: Final = 6
_TILE: Final = 128  # px, a scene
_COLUMN: Final = 156  # px, which the longest name fits
_GAP: Final = 8
_WIDTH: Final = _COLUMNS * (_COLUMN + _GAP) + _GAP
_FONT_SIZE: Final = 11
_LINE: Final = 14
_LETTERS: Final = 25  # of a line of a caption
_PAPER, _INK = (255, 255, 255), (24, 24, 24)
_HELD_OUT_INK: Final = (176, 0, 32)
_GREY: Final = 0.72  # behind the objects that show the words
_SWATCH: Final = 8  # px
_COLOURS_SHOWN: Final = 256


def contact_sheet(seed: int = 0) -> Image.Image:
    """Every word as an object, six scenes of each split with labels, and captioned crops.

    Held-out names are red. The image has a palette of 256 colours: a PNG of it stays small.

    Raises:
        InputError: the seed is negative.
    """
    sections = [
        _heading("12 shapes, 6 textures, 10 colours"),
        *(_row([_word(index) for index in range(at, at + 6)]) for at in (0, 6)),
        _heading("Scenes of shapes:train, with the name of every pixel"),
        _row([_scene(seed + index, "train") for index in range(_COLUMNS)]),
        _heading("Scenes of shapes:heldout; no training scene has what is red"),
        _row([_scene(seed + index, "heldout") for index in range(_COLUMNS)]),
        _heading("Crops with a caption for each thing"),
        _row([_crop(seed + index) for index in range(_COLUMNS)]),
    ]
    sheet = Image.new("RGB", (_WIDTH, sum(one.height for one in sections) + _GAP), _PAPER)
    top = 0
    for one in sections:
        sheet.paste(one, (0, top))
        top += one.height
    return sheet.quantize(_COLOURS_SHOWN, dither=Image.Dither.NONE)


def _heading(text: str) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, 3 * _LINE), _PAPER)
    font = ImageFont.load_default(_FONT_SIZE + 4)
    ImageDraw.Draw(strip).text((_GAP, 2 * _LINE), text, fill=_INK, font=font, anchor="lm")
    return strip


def _row(tiles: Sequence[Image.Image]) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, max(tile.height for tile in tiles)), _PAPER)
    for index, tile in enumerate(tiles):
        strip.paste(tile, (_GAP + index * (_COLUMN + _GAP), 0))
    return strip


def _tile(pictures: Sequence[Image.Image], lines: int) -> tuple[Image.Image, int]:
    """Pictures above each other with room for lines of text, and where the text begins."""
    high = sum(one.height for one in pictures)
    tile = Image.new("RGB", (_COLUMN, high + lines * _LINE + _GAP), _PAPER)
    top = 0
    for one in pictures:
        tile.paste(one, (0, top))
        top += one.height
    return tile, top


def _write(tile: Image.Image, lines: Sequence[str], left: int, top: int) -> None:
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(_FONT_SIZE)
    for number, line in enumerate(lines):
        middle = top + number * _LINE + _LINE // 2 + 2
        draw.text((left, middle), line, fill=_ink(line), font=font, anchor="lm")


def _ink(name: str) -> tuple[int, int, int]:
    return _HELD_OUT_INK if any(name == one.name for one in HELD_OUT) else _INK


def _word(index: int) -> Image.Image:
    """The shape of an index, in a texture and a colour whose turn it is, on grey."""
    colour, texture = COLOURS[index % len(COLOURS)], TEXTURES[index % len(TEXTURES)]
    one = Composition(colour, texture, SHAPES[index])
    rng = np.random.Generator(np.random.PCG64(index))
    figure = make_figure(rng, one, 34)
    side = figure.mask.shape[0]
    canvas: Floats = np.full((3, side, side), _GREY, np.float32)
    paint_figure(rng, canvas, figure, (0, 0), Light(x=-0.6, y=-0.8, shadow=0.4, softness=0.2))
    pixels = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    tile, top = _tile([Image.fromarray(np.ascontiguousarray(pixels))], 1)
    _write(tile, [one.name], 0, top)
    return tile


def _scene(seed: int, split: Split) -> Image.Image:
    """Picture, labels and legend of a scene."""
    scene = render_scene(seed, split, size=_TILE)
    colours = palette(len(scene.names))
    labels = Image.fromarray(colours[scene.labels])
    tile, top = _tile([Image.fromarray(scene.image), labels], len(scene.names))
    draw = ImageDraw.Draw(tile)
    for number, colour in enumerate(colours.tolist()):
        y = top + number * _LINE + (_LINE - _SWATCH) // 2 + 2
        draw.rectangle((0, y, _SWATCH, y + _SWATCH), fill=tuple(colour), outline=_INK)
    _write(tile, scene.names, _SWATCH + 4, top)
    return tile


def _crop(seed: int) -> Image.Image:
    (crop,) = caption_crops(seed, count=1)
    picture = Image.fromarray(crop.image).resize((_TILE, _TILE), Image.Resampling.NEAREST)
    lines = [line for caption in crop.captions for line in textwrap.wrap(caption, _LETTERS)]
    tile, top = _tile([picture], len(lines))
    _write(tile, lines, 0, top)
    return tile
