"""Memory that does not suffice for graphs run by themselves: room is made, then less is done."""

import logging
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from escnet_runtime import Segmenter
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import BackendError, OutOfDeviceMemory
from escnet_runtime.gpu import choose
from escnet_runtime.gpu.pipeline import DevicePipeline
from escnet_runtime.images import ImageArray
from tests.device.host_device import HostDevice
from tests.gpu.conftest import NAMES, frames, opener_of
from tests.gpu.made_up import MadeUpGraphs
from tests.kernels.machines import HostMachine

Fail = Callable[[str, Callable[[], bool]], None]


@pytest.fixture
def alone(
    bundle: Bundle, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Segmenter]:
    """A Segmenter of the test's own."""
    device = HostDevice(host)
    monkeypatch.setattr(choose, "_opener", lambda name, cache: opener_of(device))
    with Segmenter(bundle, "onnxruntime-cuda", device=device, cache=None) as made:
        yield made
        graphs_of(made).before = lambda graph: None
    assert not device.open


@pytest.fixture
def fail(alone: Segmenter) -> Fail:
    """Has a graph run out of memory as long as something is so."""

    def when(name: str, so: Callable[[], bool]) -> None:
        def before(graph: str) -> None:
            if graph == name and so():
                raise OutOfDeviceMemory(f"graph {graph!r} failed: out of memory")

        graphs_of(alone).before = before

    return when


def pipeline_of(segmenter: Segmenter) -> DevicePipeline:
    """Where its images run."""
    assert segmenter.device_pipeline is not None
    return segmenter.device_pipeline


def graphs_of(segmenter: Segmenter) -> MadeUpGraphs:
    """What runs them there."""
    graphs = pipeline_of(segmenter).backend
    assert isinstance(graphs, MadeUpGraphs)
    return graphs


def test_a_vocabulary_takes_the_place_of_an_arena(
    alone: Segmenter, fail: Fail, picture: ImageArray, caplog: pytest.LogCaptureFixture
) -> None:
    words = alone.vocabulary(NAMES)
    want = alone(picture, words)
    pipeline = pipeline_of(alone)
    fail("text_encoder", lambda: pipeline._arena is not None)
    with caplog.at_level(logging.WARNING):
        again = alone.vocabulary(NAMES)
    np.testing.assert_array_equal(again.embeddings, words.embeddings)
    np.testing.assert_array_equal(alone(picture, again).labels, want.labels)
    assert not caplog.messages
    assert alone.chunk == 64


def test_images_on_their_way_outlive_that(
    alone: Segmenter, fail: Fail, picture: ImageArray
) -> None:
    words = alone.vocabulary(NAMES)
    want = [alone(one, words).labels for one in frames(picture, 3, [])]
    pipeline = pipeline_of(alone)
    fail("text_encoder", lambda: pipeline._arena is not None)
    got = []
    for result in alone.stream(frames(picture, 3, []), words):
        got.append(result.labels)
        alone.vocabulary(["sea", "sun"])
    np.testing.assert_array_equal(got, want)


def test_texts_are_encoded_in_smaller_batches(
    alone: Segmenter, fail: Fail, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"thing {number}" for number in range(9)]
    want = alone.vocabulary(names).embeddings
    texts = alone._texts
    fail("text_encoder", lambda: texts._batch > 4)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(alone.vocabulary(names).embeddings, want)
    assert texts._batch <= 4
    assert f"trying {texts._batch}" in caplog.messages[-1]
    caplog.clear()
    alone.vocabulary(names)
    assert not caplog.messages


def test_a_text_encoder_that_does_not_fit_says_so(alone: Segmenter, fail: Fail) -> None:
    fail("text_encoder", lambda: True)
    with pytest.raises(OutOfDeviceMemory, match="does not fit the GPU with a single text"):
        alone.vocabulary(NAMES)
    fail("text_encoder", lambda: False)
    alone.vocabulary(NAMES)


@pytest.mark.parametrize("graph", ["image_encoder", "correlation"])
def test_a_shortlist_is_chosen_in_smaller_chunks(
    alone: Segmenter,
    fail: Fail,
    picture: ImageArray,
    caplog: pytest.LogCaptureFixture,
    graph: str,
) -> None:
    words = alone.vocabulary(NAMES)
    want = alone(picture, words, shortlist=5)
    fail(graph, lambda: alone.chunk > 4)
    with caplog.at_level(logging.WARNING):
        got = alone(picture, words, shortlist=5)
    assert got.kept == want.kept
    np.testing.assert_array_equal(got.labels, want.labels)
    assert alone.chunk == 4
    assert "trying 4" in caplog.messages[-1]


def test_a_shortlist_that_never_fits_says_what_would(
    alone: Segmenter, fail: Fail, picture: ImageArray
) -> None:
    words = alone.vocabulary(NAMES)
    fail("image_encoder", lambda: True)
    with pytest.raises(OutOfDeviceMemory, match=r"6 categories on an image of 12×16.*would fit"):
        alone(picture, words, shortlist=2)
    fail("image_encoder", lambda: False)
    alone(picture, words, shortlist=2)


def test_an_observer_gets_one_more_try_and_no_other_chunk(
    alone: Segmenter, fail: Fail, picture: ImageArray
) -> None:
    words = alone.vocabulary(NAMES)
    want = alone(picture, words).labels
    pipeline = pipeline_of(alone)
    fail("esc1_sam", lambda: pipeline._arena is not None)
    stages: list[str] = []
    seen = alone(picture, words, observer=lambda stage, where, outputs: stages.append(stage))
    np.testing.assert_array_equal(seen.labels, want)
    assert stages.count("image_encoder") == stages.count("esc1_sam") == 1
    fail("esc1_sam", lambda: True)
    with pytest.raises(OutOfDeviceMemory, match="'esc1_sam' failed: out of memory"):
        alone(picture, words, observer=lambda *_: None)
    assert alone.chunk == 64


def test_an_error_that_is_let_go_holds_nothing() -> None:
    """Not even by what caused it."""

    class Thing:
        pass

    gone: list[str] = []

    def failing() -> None:
        thing = Thing()
        weakref.finalize(thing, gone.append, "thing")
        try:
            raise ValueError(str(thing))
        except ValueError as error:
            raise BackendError("it failed") from error

    with pytest.raises(BackendError) as caught:
        failing()
    error = caught.value
    del caught
    assert not gone
    error.let_go()
    assert gone == ["thing"]
    assert isinstance(error.__cause__, ValueError)
