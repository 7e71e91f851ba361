"""Chunks of categories bound the memory and change nothing, to the last bit: here at fp32.

At fp16, where one such bit flips roundings behind it: ``tests/runtime/test_segmenter.py``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_export import ExportReport
from escnet_export.samples import sample_photo
from escnet_runtime import Segmentation, Segmenter
from escnet_runtime.backends.onnxruntime import OnnxRuntimeBackend
from escnet_runtime.images import ImageArray
from escnet_runtime.segmenter import Window

NAMES = [
    *("sky", "tree", "grass", "road", "house", "car", "dog", "cow", "lamp", "river"),
    *("boat", "bird", "sofa", "wall", "cloud", "mountain", "fence", "snow", "lake"),
]


@pytest.fixture(scope="module")
def photo() -> ImageArray:
    """One of the package's scenes, [480, 640, 3]."""
    return sample_photo(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings the tests share."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def whole(mini_report: ExportReport, cache: Path) -> Iterator[Segmenter]:
    """All categories at once."""
    with Segmenter(mini_report.bundle, chunk=len(NAMES), cache=cache) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def want(whole: Segmenter, photo: ImageArray) -> tuple[npt.NDArray[np.float32], Segmentation]:
    """Logits and result of all categories at once."""
    return _both(whole, photo)


@pytest.mark.parametrize("chunk", [1, 17])
def test_the_label_map_is_the_same_for_every_chunk(
    chunk: int,
    mini_report: ExportReport,
    cache: Path,
    photo: ImageArray,
    want: tuple[npt.NDArray[np.float32], Segmentation],
) -> None:
    with Segmenter(mini_report.bundle, chunk=chunk, cache=cache) as segmenter:
        logits, result = _both(segmenter, photo)
    np.testing.assert_array_equal(logits, want[0])
    np.testing.assert_array_equal(result.labels, want[1].labels)
    np.testing.assert_allclose(result.confidence, want[1].confidence, atol=1e-3)  # float16


def test_order_does_not_matter(
    whole: Segmenter,
    photo: ImageArray,
    want: tuple[npt.NDArray[np.float32], Segmentation],
) -> None:
    order = np.random.Generator(np.random.PCG64(4)).permutation(len(NAMES))
    logits, result = _both(whole, photo, [NAMES[index] for index in order])
    assert np.abs(logits - want[0][order]).max() <= 1e-4
    assert (order[result.labels] == want[1].labels).mean() >= 0.9999


@pytest.mark.parametrize("window", ["none", "sliding"])
def test_no_graph_sees_more_than_a_chunk(
    window: Window, mini_report: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    run = OnnxRuntimeBackend.run

    def watched(self: OnnxRuntimeBackend, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if "text" in inputs:
            seen.append(len(inputs["text"]))
        return run(self, graph, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", watched)
    with Segmenter(mini_report.bundle, chunk=17, cache=None) as segmenter:
        assert segmenter.chunk == 32  # whole groups of 16
        vocabulary = segmenter.vocabulary([f"{name} {i}" for i in range(3) for name in NAMES])
        result = segmenter(np.zeros((9, 9, 3), np.uint8), vocabulary, window=window)
    assert result.labels.shape == (9, 9)
    assert set(seen) == {32, 25}  # two groups each, the last one not full


def _both(
    segmenter: Segmenter, photo: ImageArray, names: list[str] = NAMES
) -> tuple[npt.NDArray[np.float32], Segmentation]:
    vocabulary = segmenter.vocabulary(names)
    parts = [part for _, part in segmenter.image_logits(photo, vocabulary)]
    return np.concatenate(parts), segmenter(photo, vocabulary)
