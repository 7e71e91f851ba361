"""Drawing on a scene: polygons with texture, shadows, simple outlines."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from .scene import TILE, Floats, Rgb, Scene, mix, step, texture

__all__ = ["Outline", "Shape", "bar", "blend", "board", "draw", "oval", "paint_shadow"]

Outline = Sequence[tuple[float, float]]

Shape = tuple[Outline, Floats]  # and its lit colour

_SAMPLING: Final = 3  # drawn shapes are supersampled by this much


def paint_shadow(scene: Scene, x: float, z: float, radius: float) -> None:
    """Away from the sun, the longer the lower it stands, and dark where an object meets ground."""
    hour = scene.hour
    reach = radius * min(1.2 / hour.elevation, 4.0)
    x0 = x - np.sign(scene.side) * reach * 0.8
    ragged = texture(scene.rough, 14 * scene.ground_z, 14 * scene.ground_x)
    ragged = np.maximum(1 + 0.25 * ragged, 0.4)
    dz = (scene.ground_z - z) / (0.55 * radius)
    cast = step(-(((scene.ground_x - x0) / reach) ** 2 + dz**2) * ragged, -1.3, -0.4)
    contact = np.exp(-(((scene.ground_x - x) / radius) ** 2 + (2 * dz) ** 2) * 2)
    strength = 0.62 * max(hour.sun) / (max(hour.sun) + max(hour.ambient))
    dark = np.maximum(strength * cast, 0.35 * contact)[..., None]
    scene.ground[:] = mix(scene.ground, scene.ground * np.array((0.1, 0.14, 0.22)), dark)


def blend(scene: Scene, rgb: Floats, alpha: Floats, left: int, top: int) -> None:
    """Lay ``rgb`` [h,w,3] over the canvas as far as it reaches into it."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + alpha.shape[1], scene.width), min(top + alpha.shape[0], scene.height)
    if x0 >= x1 or y0 >= y1:
        return
    part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    under = scene.canvas[y0:y1, x0:x1]
    under[:] = mix(under, rgb[part], alpha[part][..., None])


def draw(scene: Scene, z: float, shapes: Sequence[Shape], *, grain: float = 0.05) -> None:
    """Polygons in pixels and their lit colours, later ones on top, smoothed and textured."""
    corners = np.array([corner for outline, _ in shapes for corner in outline])
    low = np.clip(np.floor(corners.min(0)), -scene.width, 2 * scene.width).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 1, -scene.width, 2 * scene.width).astype(int)
    width, height = (int(side) for side in np.maximum(high - low, 1))
    sheet = Image.new("RGBA", (width * _SAMPLING, height * _SAMPLING))
    pen = ImageDraw.Draw(sheet)
    for outline, colour in shapes:
        seen = np.clip(np.rint(scene.hazed(colour, z) * 230), 0, 255).astype(int)
        points = [((x - low[0]) * _SAMPLING, (y - low[1]) * _SAMPLING) for x, y in outline]
        pen.polygon(points, fill=(int(seen[0]), int(seen[1]), int(seen[2]), 255))
    pixels = np.asarray(sheet.reduce(_SAMPLING), np.float64)
    offset = int(scene.uniform(0, TILE))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    noise = scene.rough[(rows + offset) % TILE, (columns + 3 * offset) % TILE]
    shade = 1 + grain * noise + 0.1 - 0.2 * rows / height
    blend(scene, pixels[..., :3] / 230 * shade[..., None], pixels[..., 3] / 255, *low.tolist())


def board(scene: Scene, x: float, z: float, parts: Sequence[tuple[Outline, Rgb, float]]) -> None:
    """A flat figure that faces the camera: outlines in metres, colours, shares of sun."""
    shapes: list[Shape] = [
        ([scene.project((x + dx, y, z)) for dx, y in outline], scene.lit(colour, light))
        for outline, colour, light in parts
    ]
    draw(scene, z, shapes)


def oval(x: float, y: float, rx: float, ry: float) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 25)[:-1]
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def bar(x: float, y: float, wide: float, high: float) -> Outline:
    """A rectangle from its middle and whole sides."""
    return [
        (x + sx * wide / 2, y + sy * high / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
