"""Ranges from magnitudes: bins that grow, what each method leaves out, and what cannot be held."""

from pathlib import Path

import numpy as np
import pytest

from escnet_export.calibrate import Calibration, Histogram, activation_ranges
from escnet_export.errors import ExportError
from escnet_export.quantise import quantise
from escnet_runtime.manifest import Precision
from tests.export.test_quantise import numbers, product, run

#: Magnitudes are told apart to this share of a range at worst.
BIN = 2 / 4096


def histogram(*parts: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Histogram:
    """Of these values, one part after the other."""
    made = Histogram()
    for part in parts:
        made.add(part)
    return made


@pytest.mark.parametrize("method", list(Calibration))
def test_what_comes_late_and_large_counts_as_if_it_had_come_first(method: Calibration) -> None:
    small, large = numbers(1000, seed=1), 100 * numbers(1000, seed=2)
    once = histogram(np.concatenate([small, large])).range(method)
    assert histogram(small, large).range(method) == once
    assert histogram(large, small).range(method) == once


def test_a_percentile_leaves_out_one_in_ten_thousand() -> None:
    spread = np.linspace(-1, 1, 100_000, dtype=np.float32)
    found = histogram(spread, np.full(9, 16, np.float32))
    assert found.range(Calibration.PERCENTILE) == pytest.approx(1, abs=16 * BIN)
    assert found.range(Calibration.LARGEST) == 16
    many = histogram(spread, np.full(11, 16, np.float32))
    assert many.range(Calibration.PERCENTILE) == 16


def test_entropy_keeps_an_even_spread_and_cuts_a_lone_outlier() -> None:
    even = np.linspace(-1, 1, 100_000, dtype=np.float32)
    assert histogram(even).range(Calibration.ENTROPY) == 1
    bell = numbers(100_000)
    found = histogram(bell, np.full(1, 64, np.float32)).range(Calibration.ENTROPY)
    assert 2 < found < 8


@pytest.mark.parametrize("method", list(Calibration))
def test_zeros_say_nothing(method: Calibration) -> None:
    values = numbers(1000)
    zeros = np.zeros(10**6, np.float32)
    assert histogram(values, zeros).range(method) == histogram(values).range(method)
    assert histogram(zeros).range(method) == 0


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_a_tensor_of_zeros_can_be_held(precision: Precision, tmp_path: Path) -> None:
    path, target = product(tmp_path, np.float16, numbers(32, 8)), tmp_path / "narrow.onnx"
    quantise("esc0_sam", path, target, {"narrow": 0.0}, precision=precision)
    assert np.isfinite(run(target, numbers(4, 32))).all()


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_what_is_not_finite_cannot_be_calibrated_on(wrong: float, tmp_path: Path) -> None:
    path, x = product(tmp_path, np.float16, numbers(32, 8)), numbers(4, 32)
    bad = x.copy()
    bad[2, 3] = wrong
    with pytest.raises(ExportError, match=r"'narrow' is not finite on image 2, even in float32"):
        activation_ranges(path, [{"x": x}, {"x": bad}], Calibration.LARGEST)
