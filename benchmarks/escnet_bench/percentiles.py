"""Percentiles of measured times."""

from collections.abc import Iterable

import numpy as np

__all__ = ["percentiles"]


def percentiles(times: Iterable[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th percentile, interpolated linearly between two times."""
    p50, p95, p99 = np.percentile([*times], [50, 95, 99]).tolist()
    return p50, p95, p99
