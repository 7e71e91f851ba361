"""Arrays as pictures of a given size: heat maps, label maps, masks, errors, prompts.

Every function is pure. A ``size`` is (width, height) in px; what does not have that aspect is
stretched to it, as the model sees every image stretched to a square.
"""

from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from escnet_runtime.confusion import Labels, ignore_index
from escnet_runtime.images import ImageArray
from escnet_runtime.palette import palette
from escnet_runtime.ppg import Prompts

__all__ = [
    "POINT",
    "UNLABELLED",
    "WRONG",
    "draw_prompts",
    "error_panel",
    "heat_map",
    "label_panel",
    "mask_panel",
    "photo_panel",
    "viridis",
]

Size: TypeAlias = tuple[int, int]
_Scalar = TypeVar("_Scalar", bound=np.generic)

#: Of pixels without a label, and of cells whose value is not a number.
UNLABELLED: Final = (150, 150, 150)
WRONG: Final = (224, 24, 44)
POINT: Final = (255, 255, 255)
_RING: Final = (0, 0, 0)
_OUTLINE: Final = (255, 70, 70)  # a hue that viridis lacks
_INSIDE, _OUTSIDE = (250, 250, 250), (40, 40, 40)
_DIMMED: Final = 0.4  # what is left of the light of a pixel that is right
_RADIUS: Final = 1 / 42  # of a point, in widths of the panel: a cell's outline shows round it
# Ten equal steps of matplotlib's viridis (S. van der Walt, N. Smith, CC0), perceptually uniform;
# between them it is nearly linear.
_VIRIDIS: Final = np.array(
    [
        (0x44, 0x01, 0x54),
        (0x48, 0x28, 0x78),
        (0x3E, 0x4A, 0x89),
        (0x31, 0x68, 0x8E),
        (0x26, 0x82, 0x8E),
        (0x1F, 0x9E, 0x89),
        (0x35, 0xB7, 0x79),
        (0x6D, 0xCD, 0x59),
        (0xB4, 0xDE, 0x2C),
        (0xFD, 0xE7, 0x25),
    ],
    np.float64,
)


def viridis(values: NDArray[np.floating]) -> ImageArray:
    """Colours uint8 [..., 3] of values [...] from 0 to 1, which are clamped; grey for NaN."""
    steps = np.arange(len(_VIRIDIS)) / (len(_VIRIDIS) - 1)
    known = np.nan_to_num(values.astype(np.float64))
    colours = np.stack([np.interp(known, steps, channel) for channel in _VIRIDIS.T], axis=-1)
    result = colours.round().astype(np.uint8)
    result[np.isnan(values)] = UNLABELLED
    return result


def heat_map(values: NDArray[np.float32], size: Size, *, low: float, high: float) -> Image.Image:
    """Values [h, w] as a map of cells, from dark at ``low`` to bright at ``high``.

    Where the two are equal, every cell is in the middle. NaN is grey.
    """
    span = high - low
    with np.errstate(invalid="ignore"):  # inf - inf
        shares = (values.astype(np.float64) - low) / span if span else 0 * values + 0.5
    return Image.fromarray(_nearest(viridis(shares), size))


def draw_prompts(panel: Image.Image, prompts: Prompts) -> Image.Image:
    """A copy of a map with one category's prompts on it.

    Regions are outlined, each point is a dot in the middle of its cell; points that are not used
    are left out. ``prompts`` are of one category (N = 1), on the grid that the panel shows.
    """
    regions = prompts.regions[0]
    h, w = regions.shape
    pixels = np.array(panel)
    pixels[_edges(_nearest(regions, panel.size))] = _OUTLINE
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    radius = max(3, round(panel.width * _RADIUS))
    for (x, y), label in zip(prompts.points[0].tolist(), prompts.point_labels[0], strict=True):
        if label != 1:
            continue
        centre = (int((x + 0.5) * panel.width / w), int((y + 0.5) * panel.height / h))
        draw.circle(centre, radius + 1, fill=_RING)
        draw.circle(centre, radius, fill=POINT)
    return drawn


def photo_panel(image: ImageArray, size: Size) -> Image.Image:
    """An image uint8 [H, W, 3] at another size."""
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def label_panel(
    labels: Labels, classes: int, size: Size, ignored: int | None = None
) -> Image.Image:
    """Labels [H, W] in the colours of ``palette(classes)``; grey where they are ``ignored``."""
    small = _nearest(labels, size)
    unlabelled = small == ignored if ignored is not None else np.zeros(small.shape, bool)
    colours = palette(classes)[np.where(unlabelled, 0, small)]
    colours[unlabelled] = UNLABELLED
    return Image.fromarray(colours)


def mask_panel(truth: Labels, index: int, size: Size) -> Image.Image:
    """Where the ground truth [H, W] is one class: bright; other classes dark, no label grey."""
    small = _nearest(truth, size)
    colours = np.empty((*small.shape, 3), np.uint8)
    colours[:] = _OUTSIDE
    colours[small == index] = _INSIDE
    colours[small == ignore_index(truth)] = UNLABELLED
    return Image.fromarray(colours)


def error_panel(image: ImageArray, truth: Labels, prediction: Labels, size: Size) -> Image.Image:
    """The dimmed photo with the pixels that are wrong in red; those without label are grey."""
    pixels = (np.asarray(photo_panel(image, size)) * _DIMMED).astype(np.uint8)
    wanted, guess = _nearest(truth, size), _nearest(prediction, size)
    unlabelled = wanted == ignore_index(truth)
    pixels[wanted != guess] = WRONG
    pixels[unlabelled] = UNLABELLED
    return Image.fromarray(pixels)


def _nearest(values: NDArray[_Scalar], size: Size) -> NDArray[_Scalar]:
    """Values [h, w, ...] at [height, width, ...], each from the cell its middle lies in."""
    width, height = size
    rows = (2 * np.arange(height) + 1) * values.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * values.shape[1] // (2 * width)
    result: NDArray[_Scalar] = values[rows[:, None], columns]
    return result


def _edges(regions: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels [H, W] on either side of a border between regions."""
    edges = np.zeros(regions.shape, bool)
    across, down = regions[:, 1:] != regions[:, :-1], regions[1:] != regions[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges
