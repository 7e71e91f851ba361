"""Houses, cars, cows and fences."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from .drawing import Outline, Shape, bar, board, draw, oval
from .scene import Rgb, Scene

__all__ = ["paint_car", "paint_cow", "paint_fence", "paint_house", "paint_parked_car"]


def paint_house(scene: Scene, x: float, z: float) -> None:
    """A gabled house, its long side towards the camera and one gable towards the middle."""
    uniform = scene.uniform
    length, depth, wall, roof = uniform(9, 12), 7.0, uniform(3.0, 5.2), uniform(2.2, 3.2)
    yaw = uniform(0.3, 0.6) * (1 if x < 0 else -1)
    end = 1.0 if x < 0 else -1.0  # the gable that is seen

    def at(u: float, v: float, y: float) -> tuple[float, float]:
        """Pixels of a place along and across the house, from -1 to 1, at a height in metres."""
        along, across = u * length / 2, v * depth / 2
        right = x + along * np.cos(yaw) - across * np.sin(yaw)
        return scene.project((right, y, z + along * np.sin(yaw) + across * np.cos(yaw)))

    paints = ((0.86, 0.82, 0.72), (0.80, 0.78, 0.76), (0.66, 0.36, 0.27), (0.84, 0.72, 0.50))
    paint = paints[int(scene.rng.random() * len(paints))]
    tiles = (0.90, 0.92, 0.95) if scene.season.snow == 0 else (0.46, 0.22, 0.16)
    sunny = np.sign(scene.side) == end
    eaves, ridge, stack = wall - 0.35, wall + roof, wall + roof + 0.9
    front = [at(-1, -1, 0), at(1, -1, 0), at(1, -1, wall), at(-1, -1, wall)]
    gable = [at(end, v, y) for v, y in ((-1, 0), (1, 0), (1, wall), (0, ridge), (-1, wall))]
    chimney = [
        at(u, 0.2, y) for u, y in ((-0.5, wall), (-0.36, wall), (-0.36, stack), (-0.5, stack))
    ]
    slope = [
        at(-1.06, -1.16, eaves),
        at(1.06, -1.16, eaves),
        at(1.06, 0, ridge),
        at(-1.06, 0, ridge),
    ]
    shapes: list[Shape] = [
        (front, scene.lit(paint, 0.5)),
        (gable, scene.lit(paint, 0.85 if sunny else 0.12)),
        (chimney, scene.lit((0.5, 0.3, 0.25), 0.4)),
        (slope, scene.lit(tiles, 0.7)),
        *_openings(scene, at, end, floors=(0.9, 3.3) if wall > 4.9 else (0.9,)),
    ]
    draw(scene, z, shapes, grain=0.045)


def _openings(
    scene: Scene,
    at: Callable[[float, float, float], tuple[float, float]],
    end: float,
    *,
    floors: Sequence[float],
) -> list[Shape]:
    """Windows of both walls, lit at dusk, and the door."""
    dusk = scene.hour.elevation < 0.25
    pane = np.array((0.98, 0.80, 0.45)) if dusk else scene.lit((0.16, 0.20, 0.26), 0.3)
    frame = scene.lit((0.88, 0.87, 0.84), 0.5)
    door = [at(-0.08, -1, 0), at(0.08, -1, 0), at(0.08, -1, 2.1), at(-0.08, -1, 2.1)]
    shapes: list[Shape] = [(door, scene.lit((0.34, 0.20, 0.14), 0.4))]
    for sill in floors:
        for colour, rim in ((frame, 0.09), (pane, 0.0)):
            low, high = sill - rim, sill + 1.3 + rim
            for u in (-0.75, -0.32, 0.32, 0.75):
                a, b = u - 0.09 - rim / 3, u + 0.09 + rim / 3
                corners = ((a, low), (b, low), (b, high), (a, high))
                shapes.append(([at(across, -1, y) for across, y in corners], colour))
            half = 0.2 + rim / 3
            corners = ((-half, low), (half, low), (half, high), (-half, high))
            shapes.append(([at(end, across, y) for across, y in corners], colour))
    return shapes


def _car_paint(scene: Scene) -> Rgb:
    paints = ((0.62, 0.10, 0.09), (0.75, 0.77, 0.80), (0.12, 0.24, 0.48), (0.85, 0.85, 0.84))
    return paints[int(scene.rng.random() * len(paints))]


def paint_car(scene: Scene, x: float, z: float) -> None:
    """A car seen from behind."""
    paint, black, glass = _car_paint(scene), (0.05, 0.05, 0.06), (0.16, 0.19, 0.22)
    body = [(0.9, 0.3), (0.94, 0.6), (0.92, 0.86), (0.74, 0.98), (0.6, 1.38), (0.45, 1.46)]
    pane = [(0.62, 1.0), (0.52, 1.32), (0.42, 1.37)]
    lamp, plate = (0.75, 0.05, 0.05), (0.85, 0.83, 0.7)
    parts: list[tuple[Outline, Rgb, float]] = [
        (bar(side * 0.72, 0.2, 0.24, 0.42), black, 0.1) for side in (-1, 1)
    ]
    parts.append((body + [(-u, y) for u, y in reversed(body)], paint, 0.6))
    parts.append((pane + [(-u, y) for u, y in reversed(pane)], glass, 0.7))
    parts.append((bar(0, 0.36, 1.76, 0.16), black, 0.5))
    parts += [(bar(side * 0.76, 0.8, 0.26, 0.16), lamp, 0.9) for side in (-1, 1)]
    parts.append((bar(0, 0.62, 0.5, 0.12), plate, 0.5))
    board(scene, x, z, parts)


def paint_parked_car(scene: Scene, x: float, z: float) -> None:
    """A car seen from its side."""
    paint, black, glass = _car_paint(scene), (0.05, 0.05, 0.06), (0.16, 0.19, 0.22)
    body = [
        *((-2.15, 0.35), (-2.16, 0.7), (-2.0, 0.9), (-1.4, 0.98), (-0.8, 1.4), (-0.4, 1.48)),
        *((0.5, 1.48), (0.9, 1.36), (1.5, 1.0), (2.05, 0.92), (2.17, 0.7), (2.15, 0.32)),
    ]
    parts: list[tuple[Outline, Rgb, float]] = [
        (body, paint, 0.6),
        ([(-1.18, 0.99), (-0.7, 1.35), (-0.08, 1.4), (-0.08, 0.99)], glass, 0.7),
        ([(0.03, 0.99), (0.03, 1.4), (0.5, 1.4), (0.82, 1.28), (1.2, 0.99)], glass, 0.7),
        (bar(0, 0.36, 4.2, 0.12), black, 0.4),
    ]
    for wheel in (-1.35, 1.35):
        parts += [(oval(wheel, 0.33, 0.38, 0.38), black, 0.2), (oval(wheel, 0.33, 0.2, 0.2),
                  (0.6, 0.6, 0.62), 0.4)]  # fmt: skip
    board(scene, x, z, parts)


def paint_cow(scene: Scene, x: float, z: float) -> None:
    """Grazing or looking up, brown or black and white."""
    hide: Rgb = (0.34, 0.18, 0.10) if scene.uniform(0, 1) < 0.5 else (0.10, 0.09, 0.09)
    patch: Rgb = (0.84, 0.81, 0.76)
    way = 1.0 if scene.uniform(0, 1) < 0.5 else -1.0
    head = 0.45 if scene.uniform(0, 1) < 0.6 else 1.5
    back = [(-1.0, 1.38), (-1.08, 1.0), (-0.9, 0.72), (-0.2, 0.62), (0.6, 0.7), (0.85, 0.9)]
    body = [*back, (1.0, 1.25), (0.8, 1.44), (0.0, 1.36), (-0.7, 1.42)]
    legs: list[tuple[Outline, Rgb, float]] = [
        (bar(leg, 0.38, 0.16, 0.8), hide, light)
        for leg, light in ((-0.66, 0.05), (0.44, 0.05), (-0.88, 0.3), (0.66, 0.3))
    ]
    neck = [(0.6, 1.42), (0.95, 1.36), (1.42, head + 0.14), (1.25, head - 0.1), (0.85, 0.85)]
    blot = [(-0.7, 1.41), (-0.1, 1.37), (-0.02, 1.1), (-0.3, 0.92), (-0.62, 1.08)]
    parts = [
        *legs,
        (neck, hide, 0.4), (body, hide, 0.45), (oval(1.42, head, 0.25, 0.16), hide, 0.5),
        (blot, patch, 0.5), (oval(0.1, 0.72, 0.4, 0.07), patch, 0.2),
        ([(0.3, 1.38), (0.62, 1.42), (0.6, 1.05), (0.42, 0.98)], patch, 0.5),
        (oval(1.56, head - 0.05, 0.1, 0.09), patch, 0.4),
        (bar(-1.08, 0.95, 0.05, 0.8), hide, 0.2),
    ]  # fmt: skip
    board(scene, x, z, [([(way * u, y) for u, y in o], c, light) for o, c, light in parts])


def paint_fence(scene: Scene, _: float, z: float) -> None:
    """Posts and two rails across the picture, at a slant."""
    slant, reach = 0.16 * scene.side, 0.62 * z
    places = [(x, z + slant * x) for x in np.arange(-reach, reach, 2.4).tolist()]
    wood = scene.lit((0.42, 0.36, 0.30), 0.45)
    shapes: list[Shape] = []
    for y in (0.5, 0.95):
        for (x0, z0), (x1, z1) in pairwise(places):
            outline = (
                (x0, y - 0.05, z0),
                (x1, y - 0.05, z1),
                (x1, y + 0.05, z1),
                (x0, y + 0.05, z0),
            )
            shapes.append(([scene.project(corner) for corner in outline], wood))
    for x, far in places:
        outline = (
            (x - 0.08, 0, far),
            (x + 0.08, 0, far),
            (x + 0.08, 1.2, far),
            (x - 0.08, 1.2, far),
        )
        shapes.append(([scene.project(corner) for corner in outline], wood))
    draw(scene, z, shapes, grain=0.12)
