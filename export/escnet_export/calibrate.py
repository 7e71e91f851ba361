"""Calibration: the range of each activation tensor that is to be quantised, found on real images.

Magnitudes are counted in a histogram with bins of equal width. If a value lies beyond the last bin,
all bins are made twice as wide until it fits, so the memory for a tensor does not depend on the
number of images.
"""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from escnet_runtime.backends.base import Array
from escnet_runtime.backends.widen import widen
from escnet_runtime.manifest import Precision

from .errors import ExportError
from .quantise import activations

__all__ = ["Calibration", "Histogram", "activation_ranges"]

_BINS: Final = 4096
#: Magnitudes that eight bits can tell apart: the levels that the entropy method compares with.
_LEVELS: Final = 128
#: The entropy method tries every 32nd bin as the end of the range.
_STRIDE: Final = 32
_PERCENTILE: Final = 0.9999
# Stands for the count of an empty bin, so that the divergence stays finite.
_EMPTY: Final = 1e-9
_QUIET: Final = 3


class Calibration(enum.StrEnum):
    """How the range of a tensor is derived from its values on images."""

    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    LARGEST = "largest"

    @classmethod
    def default(cls, precision: Precision) -> "Calibration":
        """A percentile for int8, the largest magnitude for fp8.

        int8's step grows with the range, so clipping outliers pays. fp8's step is proportional to
        the number itself, so clipping would gain nothing. Entropy clips too much where most
        magnitudes are small (docs/precision.md has figures).
        """
        return cls.LARGEST if precision is Precision.FP8 else cls.PERCENTILE


class Histogram:
    """A histogram of a tensor's magnitudes, zeros left out: every range represents them exactly."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._reach = 0.0  # upper end of the last bin: a power of two
        self._largest = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count ``values``: finite, of any shape."""
        sizes = np.abs(values[values != 0]).astype(np.float64)
        if not sizes.size:
            return
        largest = float(sizes.max())
        self._largest = max(self._largest, largest)
        if self._reach == 0.0:
            self._reach = 2.0 ** math.ceil(math.log2(largest))
        while largest > self._reach:
            halves = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([halves, np.zeros_like(halves)])
            self._reach *= 2.0
        bins = np.minimum(sizes * (_BINS / self._reach), _BINS - 1).astype(np.int64)
        self._counts += np.bincount(bins, minlength=_BINS)

    def range(self, method: Calibration) -> float:
        """The magnitude at which the tensor is to be clipped; 0 if all its values are 0."""
        if not self._largest:
            return 0.0
        match method:
            case Calibration.ENTROPY:
                used = self._by_entropy()
            case Calibration.PERCENTILE:
                shares = np.cumsum(self._counts) / self._counts.sum()
                used = int(np.searchsorted(shares, _PERCENTILE)) + 1
            case Calibration.LARGEST:
                return self._largest
        return min(used * self._reach / _BINS, self._largest)

    def _by_entropy(self) -> int:
        """The number of bins whose quantisation to 128 levels loses least of the distribution.

        Clipping moves what lies beyond into the last bin, and within a level all bins become equal:
        the Kullback-Leibler divergence weighs both losses (S. Migacz, 8-bit inference with
        TensorRT, GTC 2017).
        """
        last = int(np.flatnonzero(self._counts)[-1]) + 1
        sizes: list[int] = [*range(_LEVELS, last, _STRIDE), max(last, _LEVELS)]
        losses = [_divergence(self._counts, size) for size in sizes]
        return sizes[int(np.argmin(losses))]


def _divergence(counts: npt.NDArray[np.int64], size: int) -> float:
    """KL divergence of the histogram clipped to ``size`` bins from its quantised form."""
    inside = counts[:size].astype(np.float64)
    wanted = inside.copy()
    wanted[-1] += counts[size:].sum()
    levels = np.arange(size) * _LEVELS // size
    filled = inside > 0
    # The count of a level is spread evenly over those of its bins that are not empty.
    held = np.bincount(levels, inside, _LEVELS) / np.maximum(
        np.bincount(levels, filled, _LEVELS), 1
    )
    got = np.where(filled, held[levels], _EMPTY)
    wanted, got = wanted / wanted.sum(), got / got.sum()
    there = wanted > 0
    return float((wanted[there] * np.log(wanted[there] / got[there])).sum())


def activation_ranges(
    path: Path, feeds: Iterable[Mapping[str, Array]], method: Calibration
) -> dict[str, float]:
    """The magnitude at which each tensor that would be quantised is to be clipped.

    The graph runs in float32 whatever its types, because float16's steps are too coarse for the
    bins of a histogram.

    Args:
        path: a graph in float16 or float32.
        feeds: inputs in float32 (and int32), one run each.
        method: how a range is derived from values.

    Raises:
        ExportError: there is no input to calibrate on, a tensor is not finite, or ONNX Runtime
            refuses.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    given = {port.name for port in model.graph.input}
    names = activations(model.graph)
    histograms = {name: Histogram() for name in names}
    inner = [name for name in names if name not in given]
    session = _session(path, model, inner)
    runs = 0
    for feed in feeds:
        runs += 1
        found = _run(path, session, inner, feed) if inner else {}
        for name, histogram in histograms.items():
            values = np.asarray(found[name] if name in found else feed[name], np.float32)
            if not np.isfinite(values).all():
                raise ExportError(
                    f"{path.name} could not be calibrated: {name!r} is not finite on image {runs}, "
                    "even in float32"
                )
            histogram.add(values)
    if not runs:
        raise ExportError(f"{path.name} could not be calibrated: there is no input to run it on")
    return {name: histogram.range(method) for name, histogram in histograms.items()}


def _session(path: Path, model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    """``model``, widened in place, with ``names`` as its outputs."""
    widen(model.graph, {TensorProto.FLOAT16})
    if names:
        del model.graph.output[:]
    for name in names:
        port = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        model.graph.output.append(port)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no base below Exception
        raise ExportError(f"{path.name} could not be calibrated: {error}") from error


def _run(
    path: Path, session: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array]
) -> dict[str, Any]:
    try:
        return dict(zip(names, session.run(list(names), dict(feed)), strict=True))
    except Exception as error:
        raise ExportError(f"{path.name} could not be calibrated: {error}") from error
