"""What the land is painted of: sky, mountains, forest, ground, a road, a lake."""

import numpy as np
import numpy.typing as npt

from .scene import CAMERA, Floats, Scene, mix, step, texture

__all__ = ["paint_forest", "paint_ground", "paint_mountains", "paint_sky", "road_centre"]


def _profile(scene: Scene, slope: float, detail: float) -> Floats:
    """A line of hills, [W], about 0 to 1, as rough as ``slope`` says."""
    count = 2 * scene.width
    spectrum = np.fft.rfft(scene.rng.standard_normal(count))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    spectrum[0] = 0.0
    frequency[0] = 1.0
    spectrum *= (frequency + detail) ** (-slope / 2)
    line: Floats = np.fft.irfft(spectrum, n=count)[: scene.width]
    line -= line.min()
    line /= line.max()
    return line


def paint_sky(scene: Scene) -> None:
    """Clouds lie on a plane above, so that they shrink towards the horizon."""
    hour, rows = scene.hour, scene.first_row + 1
    y = np.arange(rows)[:, None] / scene.horizon
    x = np.arange(scene.width)[None, :] / scene.width - 0.5
    sky = mix(hour.zenith, hour.horizon, (np.clip(y, 0, 1) ** 1.4)[..., None])
    sun_y = 0.95 - 0.9 * hour.elevation
    away = (x - 0.62 * scene.side) ** 2 + (0.6 * (y - sun_y)) ** 2
    glow = np.exp(-away / 0.05)[..., None] * (1 - hour.clouds) * 0.8
    sky = mix(sky, np.minimum(np.multiply(hour.sun, 1.15), 1.0), glow)
    plane = 1.0 / (1.12 - np.clip(y, 0, 1))
    drift = 400 * scene.uniform(0, 1)
    v, u = 85 * plane + drift, 150 * x * (0.35 + plane) + drift
    size, fine = scene.soft, scene.rough
    density = texture(size, v, u) + 0.16 * texture(fine, 3 * v, 3 * u)
    beyond = texture(size, v - 7, u + 9 * scene.side)
    edge = 1.15 - 2.1 * hour.clouds
    cover = step(density, edge, edge + 0.95)[..., None]
    thick = step(0.6 * density + 0.6 * beyond, edge + 0.2, edge + 2.2)[..., None]
    white = np.clip(np.add(hour.ambient, np.multiply(hour.sun, 0.72)), 0, 1)
    grey = mix(np.multiply(hour.ambient, 1.15), hour.horizon, 0.35)
    cloud = mix(white, grey, 0.85 * thick)
    cloud = mix(cloud, hour.horizon, (0.75 * step(y, 0.45, 1.0))[..., None])
    scene.canvas[:rows] = mix(sky, cloud, 0.94 * cover)


def paint_mountains(scene: Scene) -> None:
    """Ridges from far to near, lit from the sun's side, fading into the air."""
    rows = np.arange(scene.first_row + 2)[:, None].astype(np.float64)
    columns = np.arange(scene.width)[None, :].astype(np.float64)
    count = 2 + int(scene.rng.random() * 2.5)
    for layer in range(count):
        near = layer / max(count - 1, 1)
        top = scene.height * scene.uniform(0.22, 0.34) * (1 - 0.62 * near)
        line = top * (0.25 + 0.75 * _profile(scene, 2.5 + 0.4 * near, 0.6))
        below = rows - (scene.horizon - line)[None, :]
        zoom = (1.3 - 0.5 * near) * 480 / scene.height
        v, u = rows * zoom + 97 * layer, columns * zoom * 1.1 + 0.35 * below + 61 * layer
        relief = 1 - np.abs(texture(scene.soft, v, u))
        slope = relief - (1 - np.abs(texture(scene.soft, v, u + 2.5 * scene.side)))
        fine = texture(scene.rough, 2 * v, 2 * u)
        light = np.clip(0.42 + 4.2 * slope + 0.13 * fine, 0.04, 1.25)
        woods = np.multiply(scene.season.leaves[0] if scene.season.leaves else (0.3,) * 3, 0.62)
        rock = np.array((0.40, 0.37, 0.35))
        altitude = 1 - below / top + 0.16 * fine + 0.22 * relief
        colour = mix(woods, rock, step(altitude, 0.35, 0.75)[..., None])
        line_of_snow = scene.season.snow + (0.1 if near < 0.5 else 9.0 * (scene.season.snow > 0))
        snow = step(altitude, line_of_snow, line_of_snow + 0.3)
        colour = mix(colour, (0.92, 0.94, 0.97), 0.9 * snow[..., None])
        distance = 1100 * (1 - near) + 350 + 500 * np.clip(below / top, 0, 1)
        seen = scene.hazed(scene.lit(colour * (1 + 0.1 * fine[..., None]), light), distance)
        inside = np.clip(below + 0.5, 0, 1)[..., None]
        scene.canvas[: len(rows)] = mix(scene.canvas[: len(rows)], seen, inside)


def paint_forest(scene: Scene) -> None:
    """The edge of a wood along the horizon."""
    rows = np.arange(scene.first_row + 2)[:, None].astype(np.float64)
    columns = np.arange(scene.width)[None, :].astype(np.float64)
    unit = scene.height / 480
    tops = 9 + 13 * _profile(scene, 1.4, 3.0) + 6 * _profile(scene, 0.7, 30.0)
    gaps = step(_profile(scene, 2.4, 0.5), 0.25, 0.45)
    line = unit * tops * (0.25 + 0.75 * gaps)
    below = rows - (scene.horizon - line)[None, :]
    v, u = rows * 1.7 / unit, columns * 1.7 / unit
    leafy = texture(scene.rough, v, u)
    tint = 0.5 + 0.5 * texture(scene.soft, 0 * v + 40, 2.2 * u)
    colours = scene.season.leaves or ((0.16, 0.20, 0.16), (0.30, 0.27, 0.26))
    colour = mix(np.multiply(colours[0], 0.8), np.multiply(colours[1], 0.8),
                  np.clip(tint, 0, 1)[..., None])  # fmt: skip
    light = np.clip(0.55 + 0.28 * leafy - 0.5 * below / (unit * 22), 0.02, 1)
    seen = scene.hazed(scene.lit(colour, light), 330.0)
    inside = np.clip(below + 0.5 + 1.2 * leafy, 0, 1)[..., None]
    scene.canvas[: len(rows)] = mix(scene.canvas[: len(rows)], seen, inside)


def paint_ground(scene: Scene) -> None:
    """Grass or snow, then a road or a lake over it."""
    x, z = scene.ground_x, scene.ground_z
    season = scene.season
    pixel = z * z / (scene.focal * CAMERA)  # metres of ground a row covers
    patches = texture(scene.soft, 5 * z + 130, 5 * x)
    light = 0.62 + 0.1 * patches
    tufts = np.zeros_like(x)
    for zoom, strength in ((9.0, 0.10), (34.0, 0.13), (110.0, 0.13)):
        seen = strength * np.clip(1.6 - zoom * pixel / 18, 0, 1)
        tufts += seen * texture(scene.rough, 0.55 * zoom * z, zoom * x)
    tint = np.clip(0.45 + 0.42 * patches + 0.5 * tufts, 0, 1)[..., None]
    strong = 0.35 if season.snow == 0 else 1.0
    colour = mix(season.grass, season.straw, tint)
    colour = colour * (1 + strong * tufts[..., None])
    scene.ground[:] = scene.hazed(scene.lit(colour, light), np.minimum(z, 330.0))
    if scene.layout == "lake":
        _paint_lake(scene)
    elif scene.layout in ("road", "village"):
        _paint_road(scene)


def _paint_road(scene: Scene) -> None:
    x, z = scene.ground_x, scene.ground_z
    aside = np.abs(x - road_centre(scene, z))
    scale = scene.focal / z  # px a metre
    worn = texture(scene.rough, 30 * z, 60 * x)
    edge = aside + 0.12 * texture(scene.rough, 8 * z, 11 * x)
    verge = np.clip((3.9 - edge) * np.minimum(scale, 6) + 0.5, 0, 1)[..., None]
    gravel = np.array((0.46, 0.41, 0.34)) * (1 + 0.14 * worn[..., None])
    scene.ground[:] = mix(scene.ground, scene.hazed(scene.lit(gravel, 0.62), z), 0.75 * verge)
    tracks = 0.05 * np.cos(2 * np.pi * aside / 1.6)
    grey = 0.34 + tracks + 0.03 * worn + 0.04 * texture(scene.soft, 9 * z, 9 * x)
    wet = np.array((0.97, 1.0, 1.04)) * grey[..., None]
    asphalt = np.clip((3.2 - aside) * scale + 0.5, 0, 1)[..., None]
    scene.ground[:] = mix(scene.ground, scene.hazed(scene.lit(wet, 0.62), z), asphalt)
    dash = (np.mod(z, 9.0) < 3.6) * (z < 60)
    middle = np.clip((0.08 - aside) * scale + 0.5, 0, 1) * dash
    border = np.clip((0.07 - np.abs(aside - 2.95)) * scale + 0.5, 0, 1) * step(-z, -90, -40)
    paint = scene.hazed(scene.lit(np.full(3, 0.86), 0.62), z)
    line = np.maximum(middle, border) * np.clip(0.85 + 0.2 * worn, 0, 1)
    scene.ground[:] = mix(scene.ground, paint, line[..., None])


def road_centre(scene: Scene, z: npt.ArrayLike) -> Floats:
    """X of the road's middle, [...], at the distance ``z`` [...]."""
    away = np.minimum(np.asarray(z, np.float64), 150.0)
    start = 1.9 if scene.layout == "road" else 3.4
    return -scene.side * (start - 0.055 * away) - scene.side * 0.0011 * (away - 5) ** 2


def _paint_lake(scene: Scene) -> None:
    """What stands behind is mirrored; the nearer, the more one looks into the water."""
    x, z = scene.ground_x, scene.ground_z
    first, rows = scene.first_row, len(z)
    bay = texture(scene.soft, np.full_like(x, 77.0), 3.3 * x)
    reach = texture(scene.soft, 6 * z + 20, 6 * x)
    shore = 8.5 + 1.6 * reach + 0.5 * np.abs(x) * (x * scene.side < 0)
    far = 130 + 35 * bay
    inside = step(z - shore, -0.25, 0.25) * step(far - z, -2, 8)
    wave = texture(scene.rough, 24 * z, 7 * x) + 0.7 * texture(scene.soft, 60 * z, 14 * x)
    near = np.clip(20 / z, 0, 1)
    y = np.arange(rows)[:, None]
    mirrored = first - 1 - y * 0.93 + wave * (0.6 + 5 * near) * scene.height / 480
    mirrored = np.clip(np.rint(mirrored), 0, first - 1).astype(np.int64)
    sideways = np.arange(scene.width)[None, :] + np.rint(1.5 * wave * near).astype(np.int64)
    picture = scene.canvas[mirrored, np.clip(sideways, 0, scene.width - 1)]
    deep = scene.lit(np.array((0.10, 0.20, 0.22)), 0.6)
    water = mix(picture * 0.93, deep, (0.18 + 0.5 * near)[..., None])
    water = water * (1 + 0.06 * wave[..., None] * (0.4 + near[..., None]))
    beach = step(z - shore, -1.4, -0.3)[..., None] * 0.8
    sand = scene.lit(np.array((0.58, 0.52, 0.42)), 0.62 + 0.07 * wave)
    scene.ground[:] = mix(scene.ground, sand, beach * step(-z, -30, -20)[..., None])
    scene.ground[:] = mix(scene.ground, water, inside[..., None])
