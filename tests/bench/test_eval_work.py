"""Counts of an evaluation in a file: whole images, whenever a signal comes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from escnet_bench.eval_work import Totals, WorkFile, counting
from escnet_runtime.confusion import ConfusionCounter

_LABELS = np.arange(6, dtype=np.uint8).reshape(2, 3)


def count(counter: ConfusionCounter, work: WorkFile) -> Totals:
    """Three images in all."""
    with counting(counter, 3, work) as counted:
        while counted.totals.images < 3:
            counted.add(_LABELS, _LABELS, 6)
    return counted.totals


@pytest.mark.parametrize("moment", range(1, 6))
def test_an_image_whose_counting_a_signal_interrupts_is_counted_once(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = WorkFile(tmp_path / "counts", {"of": "a test"})
    bincount, calls = np.bincount, iter(range(1, 100))

    def interrupted(*given: Any, **options: Any) -> Any:
        if next(calls) == 4 + moment:  # an image takes four
            raise KeyboardInterrupt
        return bincount(*given, **options)

    monkeypatch.setattr(np, "bincount", interrupted)
    with pytest.raises(KeyboardInterrupt):
        count(ConfusionCounter(6), work)
    monkeypatch.setattr(np, "bincount", bincount)
    assert work.read(ConfusionCounter(6)).images == (1 if moment < 5 else 2)
    counter = ConfusionCounter(6)
    totals = count(counter, work)
    matrix = counter.matrix
    assert matrix is not None
    assert (matrix == 3 * np.eye(6)).all()
    assert counter.scores().pixels == 3 * _LABELS.size
    assert totals.kept_sum == 3 * 6
