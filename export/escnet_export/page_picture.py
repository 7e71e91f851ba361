"""The pictures of ``parity.html``: label maps, differences and prompts of one image."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.palette import PERIOD, palette
from escnet_runtime.ppg import Prompts

from .page_html import percent, text

__all__ = ["ParityPicture", "picture_section"]

_Mask = npt.NDArray[np.bool_]

_LARGEST: Final = 320  # px, the longer side of a picture on the page
_SHOWN_CATEGORIES: Final = 4  # whose prompts are drawn, in each picture
_SMALLEST_AREA: Final = 0.005  # share of a label map that a category in its legend has at least
_UNUSED: Final = -1  # label of a point that is not used
_SAME, _EDGE, _OTHER = (228, 230, 235), (140, 146, 158), (224, 0, 112)
_MOST_RINGS: Final = 12  # with more spots that differ, none is ringed
_SPOTS: Final = 16  # spots along each side of the map
_FLIPPED_BLOCKS: Final = 3  # most blocks with flips that are drawn in each picture
_LISTED: Final = 8  # most flips, and most changes of labels, that are listed for each picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParityPicture:
    """One image through float32 torch (the reference) and through the exported, typed graphs.

    Attributes:
        image: uint8 [H,W,3].
        reference_labels, typed_labels: integers [S,S], indices into ``names``, at the size of the
            model's input: stretched to a square, as the image is.
        names: of the N categories.
        grid: rows and columns of the maps that prompts point into.
        reference_prompts, typed_prompts: one entry a block, each of N categories.

    Raises:
        InputError: shapes, types or numbers of these do not fit together.
    """

    image: ImageArray
    reference_labels: npt.NDArray[np.integer[Any]]
    typed_labels: npt.NDArray[np.integer[Any]]
    names: Sequence[str]
    grid: tuple[int, int]
    reference_prompts: Sequence[Prompts]
    typed_prompts: Sequence[Prompts]

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise InputError(
                f"got an image {self.image.dtype} {list(self.image.shape)}; expected uint8 [H,W,3]"
            )
        reference, typed = self.reference_labels, self.typed_labels
        if reference.shape != typed.shape or reference.ndim != 2 or reference.size == 0:
            raise InputError(
                f"got label maps {list(reference.shape)} and {list(typed.shape)}; expected two "
                "of the same size [S,S]"
            )
        for labels in (reference, typed):
            if labels.min() < 0 or labels.max() >= len(self.names):
                raise InputError(
                    f"got labels {labels.min()} to {labels.max()} for {len(self.names)} names"
                )
        if len(self.reference_prompts) != len(self.typed_prompts):
            raise InputError(
                f"got prompts of {len(self.reference_prompts)} and {len(self.typed_prompts)} "
                "blocks; expected equally many"
            )
        for prompts in (*self.reference_prompts, *self.typed_prompts):
            if len(prompts.points) != len(self.names):
                raise InputError(
                    f"got prompts of {len(prompts.points)} categories for {len(self.names)} names"
                )


def picture_section(index: int, picture: ParityPicture) -> str:
    """HTML of one image: both label maps, where they differ, and its prompts."""
    height, width = picture.image.shape[:2]
    scale = min(1.0, _LARGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = Image.fromarray(picture.image).resize(size, Image.Resampling.BOX)
    # 256 colours: otherwise the photo's noise would make up most of the page's bytes.
    source = _data(photo.quantize(PERIOD, dither=Image.Dither.FLOYDSTEINBERG))
    different = picture.reference_labels != picture.typed_labels
    pair = (
        _figure(_img(_label_map(picture.reference_labels, picture, size)), "float32 torch"),
        _figure(_img(_label_map(picture.typed_labels, picture, size)), "Exported graphs"),
    )
    flips = _flips(picture)
    shown = _shown(picture, flips)
    prompts = [
        _figure(
            _svg(index, size, _points(picture, block, shown, size)),
            f"Prompts of block {block}: {sum(flip.block == block for flip in flips) or 'none'} "
            "flipped",
        )
        for block in _drawn_blocks(picture, flips)
    ]
    figures = [
        _figure(_svg(index, size, ""), "Photo"),
        *prompts[:1],
        f'<div class="pair">{"".join(pair)}</div>',
        _figure(_difference(picture, different, size), _difference_caption(different)),
        *prompts[1:],
    ]
    # All uses of the photo refer to this one copy.
    shared = (
        '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
        f'<image id="photo-{index}" width="{size[0]}" height="{size[1]}" href="{source}"/>'
        "</defs></svg>"
    )
    return (
        f'<h3>Image {index + 1}</h3>{shared}<div class="row">{"".join(figures)}</div>'
        f"{_legend(picture, _large(picture))}{_label_changes(picture, different)}"
        f"{_flip_list(picture, flips, shown)}"
    )


def _difference_caption(different: _Mask) -> str:
    count = int(different.sum())
    if not count:
        return "Difference: none"
    share = percent(1 - count / different.size)
    return f"Difference: {count:,} of {different.size:,} pixels, {share} equal"


def _label_changes(picture: ParityPicture, different: _Mask) -> str:
    """Which labels became which, in words, the most frequent first."""
    if not different.any():
        return ""
    changes = np.stack([picture.reference_labels[different], picture.typed_labels[different]])
    pairs, counts = np.unique(changes, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_LISTED]
    words = [
        f"{picture.names[pairs[0, k]]} became {picture.names[pairs[1, k]]} ({counts[k]:,})"
        for k in order
    ]
    more = " and others" if len(counts) > len(words) else ""
    return f'<p class="soft">Pixels that differ: {text(", ".join(words))}{more}.</p>'


def _flip_list(picture: ParityPicture, flips: Sequence["_Flip"], shown: Sequence[int]) -> str:
    """A key to the pictures of prompts, and a table of the flips."""
    if not picture.reference_prompts:
        return ""
    names = text(", ".join(picture.names[c] for c in shown))
    words = (
        f'<p class="soft">Prompts shown: dots, in the colours of {names}, where float32 torch '
        "puts them."
    )
    if not flips:
        return words + " None flipped in this image.</p>"
    rows = "".join(
        f"<tr><td>{flip.block}</td><td>{text(picture.names[flip.category])}</td>"
        f"<td>{_place(picture.reference_prompts, flip)}</td>"
        f"<td>{_place(picture.typed_prompts, flip)}</td></tr>"
        for flip in flips[:_LISTED]
    )
    more = len(flips) - _LISTED
    return (
        f"{words} A flipped prompt is ringed, with a line to the square where the exported graphs "
        'put it.</p><table class="flips"><thead><tr><th>Block</th><th>Category</th>'
        "<th>Point in float32 torch</th><th>In the exported graphs</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        + (f'<p class="soft">And {more:,} more.</p>' if more > 0 else "")
    )


def _place(prompts: Sequence[Prompts], flip: "_Flip") -> str:
    block = prompts[flip.block]
    if block.point_labels[flip.category, flip.point] == _UNUSED:
        return "none"
    x, y = block.points[flip.category, flip.point]
    return f"column {x:.0f}, row {y:.0f}"


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>"


def _svg(index: int, size: tuple[int, int], marks: str) -> str:
    opacity = ' opacity="0.6"' if marks else ""
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="photo">'
        f'<use href="#photo-{index}"{opacity}/>{marks}</svg>'
    )


def _img(source: str) -> str:
    return f'<img alt="" src="{source}">'


def _data(picture: Image.Image, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _indexed(
    values: npt.NDArray[np.uint8], colours: npt.ArrayLike, *, transparent: int | None = None
) -> str:
    picture = Image.fromarray(values)
    picture.putpalette(np.asarray(colours, np.uint8).tobytes())
    return _data(picture) if transparent is None else _data(picture, transparency=transparent)


def _label_map(
    labels: npt.NDArray[np.integer[Any]], picture: ParityPicture, size: tuple[int, int]
) -> str:
    return _indexed(_nearest(_indices(labels), size), palette(min(len(picture.names), PERIOD)))


def _indices(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Labels as indices into the palette, whose colours repeat."""
    return np.asarray(labels.astype(np.int64) % PERIOD, np.uint8)


def _nearest(values: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def _difference(picture: ParityPicture, different: _Mask, size: tuple[int, int]) -> str:
    """Pixels that differ, over the outlines of torch's regions; scaling down loses none.

    If they are few, they are ringed: nobody would find them otherwise.
    """
    small = _nearest(_indices(picture.reference_labels), size)
    values = np.zeros(small.shape, np.uint8)
    values[:, 1:] |= small[:, 1:] != small[:, :-1]
    values[1:] |= small[1:] != small[:-1]
    mask = Image.fromarray(different.astype(np.float32))
    values[np.asarray(mask.resize(size, Image.Resampling.BOX)) > 0] = 2
    source = _indexed(values, (_SAME, _EDGE, _OTHER), transparent=0)
    rings = "".join(
        f'<circle cx="{x * size[0]:.1f}" cy="{y * size[1]:.1f}" r="9"/>'
        for x, y in _spots(different)
    )
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="difference">'
        f'<image width="{size[0]}" height="{size[1]}" href="{source}"/>'
        f'<g fill="none" stroke="{_css(_OTHER)}" stroke-width="2">{rings}</g></svg>'
    )


def _spots(different: _Mask) -> list[tuple[float, float]]:
    """Where pixels differ, as fractions (x, y) of the map; none if there are many spots."""
    rows, columns = np.nonzero(different)
    height, width = different.shape
    cells = rows * _SPOTS // height * _SPOTS + columns * _SPOTS // width
    found = np.unique(cells)
    if len(found) > _MOST_RINGS:
        return []
    return [
        (
            float(columns[cells == cell].mean() + 0.5) / width,
            float(rows[cells == cell].mean() + 0.5) / height,
        )
        for cell in found
    ]


def _areas(picture: ParityPicture) -> npt.NDArray[np.float64]:
    """Each category's share of the label map, [N]: the larger one of torch and the graphs."""
    count = len(picture.names)
    maps = (picture.reference_labels, picture.typed_labels)
    areas = [np.bincount(labels.ravel(), minlength=count) / labels.size for labels in maps]
    return np.maximum(*areas)


def _large(picture: ParityPicture) -> list[int]:
    areas = _areas(picture)
    return [int(c) for c in np.argsort(-areas, kind="stable") if areas[c] >= _SMALLEST_AREA][:24]


@dataclass(frozen=True, slots=True)
class _Flip:
    """A prompt that the exported graphs choose differently."""

    block: int
    category: int
    point: int


def _flipped(picture: ParityPicture, block: int) -> _Mask:
    """Which prompts flipped in a block, [N,K]."""
    want, got = picture.reference_prompts[block], picture.typed_prompts[block]
    moved = (want.points != got.points).any(axis=-1) | (want.point_labels != got.point_labels)
    return np.asarray(moved, np.bool_)


def _flips(picture: ParityPicture) -> list[_Flip]:
    """All flips, from the first block to the last."""
    return [
        _Flip(block, int(category), int(point))
        for block in range(len(picture.reference_prompts))
        for category, point in np.argwhere(_flipped(picture, block))
    ]


def _drawn_blocks(picture: ParityPicture, flips: Sequence[_Flip]) -> list[int]:
    """Blocks to draw: the first ones in which prompts flipped, or block 0 if none did."""
    blocks = list(dict.fromkeys(flip.block for flip in flips))
    return (blocks or [*range(len(picture.reference_prompts))][:1])[:_FLIPPED_BLOCKS]


def _shown(picture: ParityPicture, flips: Sequence[_Flip]) -> list[int]:
    """Categories to draw prompts of: those with flips, then by area."""
    flipped = list(dict.fromkeys(flip.category for flip in flips))
    rest = [int(c) for c in np.argsort(-_areas(picture), kind="stable") if int(c) not in flipped]
    return (flipped + rest)[: max(_SHOWN_CATEGORIES, min(len(flipped), _LISTED))]


def _legend(picture: ParityPicture, categories: Iterable[int]) -> str:
    colours = palette(len(picture.names))
    items = (
        f'<li><i style="background:{_css(colours[c])}"></i>{text(picture.names[c])}</li>'
        for c in categories
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _css(colour: Iterable[int]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in colour)


def _points(picture: ParityPicture, block: int, shown: Sequence[int], size: tuple[int, int]) -> str:
    want, got = picture.reference_prompts[block], picture.typed_prompts[block]
    flipped, colours = _flipped(picture, block), palette(len(picture.names))
    cell = np.array(size, np.float64) / picture.grid[::-1]
    dots, rings = [], []
    for category in shown:
        for point in range(want.points.shape[1]):
            x, y = (want.points[category, point] + 0.5) * cell
            u, v = (got.points[category, point] + 0.5) * cell
            here = want.point_labels[category, point] != _UNUSED
            there = got.point_labels[category, point] != _UNUSED
            fill = f'fill="{_css(colours[category])}" stroke="#fff"'
            if here:
                dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {fill}/>')
            if not flipped[category, point]:
                continue
            if here and there:
                rings.append(f'<path d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}"/>')
            if not here:
                dots.append(f'<circle cx="{u:.1f}" cy="{v:.1f}" r="3" {fill}/>')
            if there:
                rings.append(f'<rect x="{u - 4:.1f}" y="{v - 4:.1f}" width="8" height="8"/>')
            x, y = (x, y) if here else (u, v)
            rings.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
    # Black on white: no category has either colour.
    strokes = (("#fff", 4.5), ("#000", 2)) if rings else ()
    return "".join(dots) + "".join(
        f'<g fill="none" stroke="{colour}" stroke-width="{width}">{"".join(rings)}</g>'
        for colour, width in strokes
    )
