"""Landscapes that look like photos, made from a seed: the package needs no pictures of its own.

Parity is measured on pictures with the statistics of photos: spectra near 1/f, occlusion, texture
that shrinks with distance, haze, shadows, sensor noise. A scene is painted from far to near through
one pinhole camera: X is metres to the right, Y up, Z away from the camera. Colours are display
values from 0 to 1. Arithmetic is float64, random numbers come from PCG64, so a seed gives the same
picture everywhere up to the last bit of the C library's mathematics.
"""

from .photo import SAMPLE_CATEGORIES, sample_photo, sample_photos

__all__ = ["SAMPLE_CATEGORIES", "sample_photo", "sample_photos"]
