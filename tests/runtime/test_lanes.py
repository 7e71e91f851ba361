"""Runs of one graph side by side: how many, in which order, and what is left behind."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import escnet_runtime.backends.onnxruntime as backend_module
from escnet_runtime import Segmenter
from escnet_runtime.lanes import Lanes, best_lanes, thread_limit, usable_cores
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.postprocess import UpsampleArgmax
from tests.runtime.test_pipeline import BLOCKS, GROUP, PPG, MadeUpGraphs, all_logits, image


@pytest.mark.parametrize(
    ("rows", "cores", "lanes"),
    [
        ([19], 8, 1),  # nothing to share
        ([16, 3], 2, 1),  # the second lane would wait for the first
        ([16, 16], 2, 2),
        ([16, 16, 16], 2, 1),  # three on two lanes leave a core idle for as long as they save
        ([16] * 9 + [6], 2, 2),
        ([16] * 10, 1, 1),  # one core
        ([16] * 53, 64, 4),  # memory: each lane holds a chunk's activations
    ],
)
def test_lanes_are_as_many_as_finish_first(rows: list[int], cores: int, lanes: int) -> None:
    assert best_lanes(rows, cores) == lanes


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1


@pytest.mark.parametrize(
    ("seen", "quota", "usable", "limit"), [(64, 2, 2, 2), (64, None, 64, 0), (2, 8, 2, 0)]
)
def test_a_container_that_is_given_less_time_gets_fewer_threads(
    seen: int, quota: int | None, usable: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("escnet_runtime.lanes._seen_cores", lambda: seen)
    monkeypatch.setattr("escnet_runtime.lanes.core_quota", lambda: quota)
    assert usable_cores() == usable
    assert thread_limit() == limit
    assert backend_module._options(0).intra_op_num_threads == limit  # 0: as ONNX Runtime likes
    assert backend_module._options(1).intra_op_num_threads == 1
    assert UpsampleArgmax(4, 4, (2, 2), 3)._threads == min(usable, 8)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_results_come_in_order(count: int) -> None:
    delays = [0.02, 0.0, 0.01, 0.0, 0.015, 0.0]

    def late(index: int) -> int:
        time.sleep(delays[index])
        return index

    with Lanes(count) as lanes:
        assert list(lanes.each(late, range(len(delays)))) == list(range(len(delays)))


def test_runs_are_side_by_side_and_not_far_ahead() -> None:
    meet = threading.Barrier(2, timeout=20)
    started: list[int] = []

    def both(index: int) -> int:
        started.append(index)
        if index < 2:
            meet.wait()  # passes only if the first two run at once
        return index

    with Lanes(2) as lanes:
        results = lanes.each(both, range(100))
        assert next(results) == 0
        assert len(started) <= 4
        results.close()  # type: ignore[attr-defined]
    assert len(started) <= 4


def test_an_error_comes_in_its_place_and_nothing_runs_on() -> None:
    running = threading.Semaphore(0)

    def fails(index: int) -> int:
        try:
            if index == 1:
                raise ValueError("the second")
            time.sleep(0.01)
            return index
        finally:
            running.release()

    with Lanes(2) as lanes:
        results = lanes.each(fails, range(50))
        assert next(results) == 0
        with pytest.raises(ValueError, match="the second"):
            next(results)
        done = running._value
    assert running._value == done
    assert not [t for t in threading.enumerate() if t.name.startswith("escnet-lane")]


class SideBySide(MadeUpGraphs):
    """The same graphs, that ask for lanes and end in another order than they began in."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.asked: list[list[int]] = []
        self._lock = threading.Lock()
        self._late = 0

    def lanes(self, rows: Sequence[int]) -> int:
        """As many as the test wants."""
        self.asked.append(list(rows))
        return self.count

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Every other run takes longer."""
        with self._lock:
            self._late += 1
            late = self._late % 2
        time.sleep(0.002 * late)
        return super().run(graph, inputs)


@pytest.mark.parametrize("count", [2, 3])
def test_lanes_change_no_bit_and_no_order(count: int) -> None:
    text = np.random.default_rng(5).normal(size=(11, 8)).astype(np.float32)
    plain = Pipeline(MadeUpGraphs(), blocks=BLOCKS, ppg=PPG, group=GROUP)
    graphs = SideBySide(count)
    lanes = Pipeline(graphs, blocks=BLOCKS, ppg=PPG, group=GROUP)
    seen: dict[str, list[tuple[str, int]]] = {"plain": [], "lanes": []}
    for name, pipeline in (("plain", plain), ("lanes", lanes)):
        encoded = pipeline.encode_image(image())

        def observe(stage: str, where: slice, _: Mapping[str, Any], name: str = name) -> None:
            seen[name].append((stage, where.start))

        list(pipeline.logits(encoded, text, chunk=3, observer=observe))
    assert seen["lanes"] == seen["plain"]
    np.testing.assert_array_equal(all_logits(lanes, text, 3), all_logits(plain, text, 3))
    assert graphs.asked[0] == [3, 3, 3, 2]


def test_a_bundle_gives_the_same_bits_in_any_number_of_lanes(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (90, 120, 3), np.uint8)
    names = [f"thing {index}" for index in range(70)]
    results = []
    monkeypatch.setattr(backend_module, "usable_cores", lambda: 4)
    with Segmenter(tiny_bundle, "onnxruntime", chunk=16) as segmenter:
        for count in (1, 2, 4, 1):  # each with sessions of its own
            monkeypatch.setattr(backend_module, "best_lanes", lambda *_, count=count: count)
            results.append(segmenter(pixels, segmenter.vocabulary(names)))
    for other in results[1:]:
        np.testing.assert_array_equal(other.labels, results[0].labels)
        np.testing.assert_array_equal(other.confidence, results[0].confidence)
