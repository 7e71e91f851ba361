"""A video under its categories' colours, beside a legend that stays put.

A category gets its line when it is first seen and keeps it to the end, so that an eye finds it
again; while it is not in the picture its line is pale. The panel has one size for the whole video.
What finds no line is summed up in the last one.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .errors import InputError
from .images import ImageArray
from .legend import INK, LONGEST_NAME, PAPER, WARNING, font_size, stands_below
from .lettering import Text, fit, wrap
from .palette import palette
from .pictures import Labels, draw_overlay, enlarged, label_counts
from .result import Segmentation

__all__ = ["VideoOverlay"]

_MOST_LINES = 30
_ROWS_BELOW = 4  # of a panel below a wide video
_ENTERS = 0.005  # share of a frame from which on a category gets a line
_STAYS = 0.001  # share from which on it is in the picture
_LINGERS = 0.5  # seconds that a line stays lit: a category at the border of being there flickers
_MEASURED = 1000  # names
_PALE = 0.72  # of the way to the paper


class VideoOverlay:
    """Draws the frames of one video, in order.

    Args:
        names: the categories.
        rate: frames a second.
        note: a caution that the panel shows.
    """

    def __init__(self, names: Sequence[str], rate: float, *, note: str | None = None) -> None:
        self._names, self._note = tuple(names), note
        self._lingers = max(1, round(_LINGERS * rate))
        self._order: list[int] = []  # categories with or without a line, as they came
        self._last = np.full(len(self._names), -self._lingers - 1, np.int64)  # frame it was seen in
        self._frame = 0
        self._size = (0, 0)  # of the frames, from the first one on
        self._panel: _Panel | None = None
        self._drawn: tuple[tuple[int, ...], frozenset[int]] | None = None
        self._picture: ImageArray = np.empty((0, 0, 3), np.uint8)

    def draw(self, result: Segmentation) -> ImageArray:
        """A frame and the panel, uint8; the size of all frames is that of the first.

        Raises:
            InputError: the frame has another size than the first, or other categories.
        """
        if result.names != self._names:
            raise InputError("got a frame of other categories than the video's")
        image, labels = enlarged(result.image, result.labels)
        height, width = labels.shape
        if self._panel is None:
            self._size = (height, width)
            self._panel = _Panel(self._names, width, height, self._note)
        if (height, width) != self._size:
            raise InputError(
                f"got a frame of {width}×{height} pixels in a video of "
                f"{self._size[1]}×{self._size[0]}; expected all frames to have one size"
            )
        self._see(labels)
        frame = np.asarray(draw_overlay(image, labels, self._names, legend=False))
        panel = self._current(self._panel)
        return np.concatenate([frame, panel], axis=0 if self._panel.below else 1)

    def _see(self, labels: Labels) -> None:
        """Take note of what is in a frame."""
        shares = label_counts(labels, len(self._names)) / labels.size
        known = set(self._order)
        for index in np.argsort(-shares, kind="stable").tolist():
            if shares[index] < _ENTERS:
                break
            if index not in known:
                self._order.append(index)
        self._last[shares >= _STAYS] = self._frame
        self._frame += 1

    def _current(self, panel: "_Panel") -> ImageArray:
        """The panel as it is now; drawn again only if something has changed."""
        lit = frozenset(i for i in self._order if self._frame - self._last[i] <= self._lingers)
        state = (tuple(self._order), lit)
        if state != self._drawn:
            self._drawn, self._picture = state, panel.draw(self._order, lit)
        return self._picture


class _Panel:
    """The legend's paper: its size and its lines are settled before the first frame."""

    def __init__(self, names: tuple[str, ...], width: int, height: int, note: str | None) -> None:
        self.below = stands_below(width, height)
        self._size = size = font_size(width, height)
        self._line, self._gap = round(1.5 * size), size // 2
        self._names = names
        self._colours = palette(len(names)).tolist()
        self._column = size + self._gap + self._widest()
        content = width - 2 * size if self.below else self._column
        self._note = wrap(note, content, size) if note else []
        self._heading = len(self._note) * self._line + (self._gap if self._note else 0)
        wanted = min(len(names), _MOST_LINES)
        if self.below:
            columns = max(1, (width - size) // (self._column + size))
            self._rows = min(math.ceil(wanted / columns), _ROWS_BELOW)
            lines = columns * self._rows
            self._paper = (width, self._heading + self._rows * self._line + size)
        else:
            self._rows = max(1, (height - self._heading - size) // self._line)
            lines = self._rows
            self._paper = (self._column + 2 * size, height)
        self._lines = min(lines, wanted)
        self._some_left = len(names) > self._lines
        self._paper = (self._paper[0] + self._paper[0] % 2, self._paper[1])  # codecs need it even

    def _widest(self) -> int:
        """Width of the widest name, in px; the limit if there are too many names to measure."""
        if len(self._names) > _MEASURED:
            return LONGEST_NAME * self._size
        more = f"+ {len(self._names)} more"
        return max(self._text(name).width for name in (*self._names, more))

    def _text(self, characters: str) -> Text:
        return fit(characters, LONGEST_NAME * self._size, self._size)

    def draw(self, order: Sequence[int], lit: frozenset[int]) -> ImageArray:
        """The lines of some categories in their order; those that are not lit are pale."""
        panel = Image.new("RGB", self._paper, PAPER)
        draw = ImageDraw.Draw(panel)
        for number, text in enumerate(self._note):
            at = self._gap + number * self._line + self._line // 2
            text.draw(draw, self._size, at, WARNING)
        shown = self._lines - self._some_left
        for number, index in enumerate(order[:shown]):
            text = self._text(self._names[index])
            self._entry(draw, number, text, tuple(self._colours[index]), index in lit)
        rest = order[shown:]
        if rest:
            text = self._text(f"+ {len(rest)} more")
            self._entry(draw, shown, text, None, not lit.isdisjoint(rest))
        return np.asarray(panel)

    def _entry(
        self,
        draw: ImageDraw.ImageDraw,
        number: int,
        text: Text,
        colour: tuple[int, ...] | None,
        lit: bool,
    ) -> None:
        size = self._size
        x = size + number // self._rows * (self._column + size)
        y = self._gap + self._heading + number % self._rows * self._line + self._line // 2
        ink = INK if lit else _pale(INK)
        if colour is not None:
            box = (x, y - size // 2, x + size - 1, y - size // 2 + size - 1)
            draw.rectangle(box, fill=colour if lit else _pale(colour), outline=ink)
        text.draw(draw, x + size + self._gap, y, ink)


def _pale(colour: tuple[int, ...]) -> tuple[int, ...]:
    mixed: NDArray[np.float64] = np.array(colour) + _PALE * (np.array(PAPER) - colour)
    return tuple(mixed.round().astype(int).tolist())
