"""A Segmenter that many share, in all its ways: no leak, no deadlock, and the next call works."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime import EscNetError, ImageError, Nv12Frame, Segmenter, Vocabulary
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import BackendError
from escnet_runtime.gpu import choose
from escnet_runtime.images import ImageArray
from escnet_runtime.segmenter import Window
from tests.device.host_device import HostDevice
from tests.gpu.conftest import NAMES, Lend, frames, opener_of
from tests.gpu.made_up import MadeUpGraphs
from tests.kernels.machines import HostMachine

Labels = npt.NDArray[np.generic]
WINDOWS: tuple[Window, ...] = ("none", "sliding")


@pytest.fixture(scope="module")
def frame() -> Nv12Frame:
    """Of 12×16 pixels."""
    random = np.random.default_rng(6)
    return Nv12Frame(
        luma=random.integers(0, 256, (12, 16), np.uint8),
        chroma=random.integers(0, 256, (6, 16), np.uint8),
    )


@pytest.fixture
def graphs(segmenter: Segmenter) -> MadeUpGraphs:
    """Those of the device."""
    assert segmenter.device_pipeline is not None
    found = segmenter.device_pipeline.backend
    assert isinstance(found, MadeUpGraphs)
    return found


def in_use(segmenter: Segmenter) -> int:
    """Slots that an image has not given back."""
    assert segmenter.device_pipeline is not None
    return len(segmenter.device_pipeline._slots.used)


def test_ten_threads_share_a_segmenter_in_all_of_its_ways(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    picture: ImageArray,
    frame: Nv12Frame,
    lend: Lend,
    tmp_path: Path,
) -> None:
    other = segmenter.vocabulary(["sea", "sun"])
    lent = Nv12Frame(luma=lend(frame.luma), chroma=lend(frame.chroma))
    on_device, pixels = lend(picture), list(frames(picture, 3, []))
    bad = tmp_path / "none.png"
    bad.write_bytes(b"no image")

    def streamed(window: Window, most: int) -> list[Labels]:
        stream = segmenter.stream([*pixels[:2], frame], vocabulary, window=window)
        found: list[Labels] = [next(stream).labels for _ in range(most)]
        stream.close()
        return found

    def refused() -> list[Labels]:
        with pytest.raises(ImageError):
            segmenter(bad, vocabulary)
        return []

    ways: list[Callable[[], list[Labels]]] = [
        lambda: [segmenter(pixels[1], vocabulary).labels],
        lambda: [segmenter(pixels[2], other).labels],
        lambda: [segmenter(picture, vocabulary, window="sliding").labels],
        lambda: [segmenter(frame, vocabulary).labels],
        lambda: [segmenter(lent, other, window="sliding").labels],
        lambda: [segmenter(on_device, vocabulary).labels],
        lambda: streamed("none", 3),
        lambda: streamed("sliding", 1),
        lambda: [segmenter(frame, other, observer=lambda *_: None).labels],
        refused,
    ]
    want = [way() for way in ways]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(2):
                which = (number + 3 * turn) % len(ways)
                for got, expected in zip(ways[which](), want[which], strict=True):
                    np.testing.assert_array_equal(got, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)  # far beyond any machine: a deadlock
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    assert in_use(segmenter) == 0


def test_logits_are_locked_step_by_step_and_not_between(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    picture: ImageArray,
    graphs: MadeUpGraphs,
) -> None:
    """They share stream and contexts with other calls, which a slow reader does not hold up."""
    want = segmenter(picture, vocabulary).labels
    unlocked: list[str] = []
    lock: Any = segmenter._lock

    def watch(graph: str) -> None:
        if not lock._is_owned():
            unlocked.append(graph)

    found: list[Labels] = []
    graphs.before = watch
    try:
        segmenter.device_pipeline.chunk, chunk = 4, segmenter.chunk  # type: ignore[union-attr]
        logits = segmenter.image_logits(picture, vocabulary)
        first, _ = next(logits)
        assert not lock._is_owned()
        other = threading.Thread(target=lambda: found.append(segmenter(picture, vocabulary).labels))
        other.start()
        other.join(timeout=600)
        assert not other.is_alive()
        rest = [where for where, _ in logits]
    finally:
        graphs.before = lambda graph: None
        segmenter.device_pipeline.chunk = chunk  # type: ignore[union-attr]
    assert [first, *rest] == [slice(0, 4), slice(4, 6)]
    np.testing.assert_array_equal(found[0], want)
    assert not unlocked


def test_logits_of_a_segmenter_that_is_closed_say_so(
    bundle: Bundle, host: HostMachine, picture: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice(host)
    monkeypatch.setattr(choose, "_opener", lambda name, cache: opener_of(device))
    made = Segmenter(bundle, "onnxruntime-cuda", device=device, chunk=4, cache=None)
    words = made.vocabulary(NAMES)
    logits, never_begun = (made.image_logits(picture, words) for _ in range(2))
    next(logits)
    made.close()
    for one in (logits, never_begun):
        with pytest.raises(EscNetError, match="this Segmenter is closed; make a new one"):
            next(one)
    assert not device.open


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("nv12", [False, True])
def test_an_error_in_the_middle_of_an_image_leaves_the_next_one_right(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    picture: ImageArray,
    frame: Nv12Frame,
    graphs: MadeUpGraphs,
    device: HostDevice,
    window: Window,
    nv12: bool,
) -> None:
    image = frame if nv12 else picture
    want = segmenter(image, vocabulary, window=window).labels
    there = len(device.open)

    def fail(graph: str) -> None:
        if graph == "esc1_text":
            raise BackendError("made up")

    stream = segmenter.stream([image] * 4, vocabulary, window=window)
    next(stream)
    graphs.before = fail
    try:
        with pytest.raises(BackendError, match="made up"):
            next(stream)
        for _ in range(3):
            with pytest.raises(BackendError, match="made up"):
                segmenter(image, vocabulary, window=window)
    finally:
        graphs.before = lambda graph: None
    assert in_use(segmenter) == 0
    assert len(device.open) <= there + 5  # one more slot, of the stream
    np.testing.assert_array_equal(segmenter(image, vocabulary, window=window).labels, want)


def test_an_array_that_is_refused_comes_behind_the_results_before_it(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray, lend: Lend
) -> None:
    """As a file that cannot be read does, though it is looked at only on its way to the device."""
    want = segmenter(picture, vocabulary).labels
    grey = lend(picture[:, :, :1])
    stream = segmenter.stream([picture, picture, grey, picture], vocabulary)
    for _ in range(2):
        np.testing.assert_array_equal(next(stream).labels, want)
    with pytest.raises(ImageError, match=r"got an array \[12, 16, 1\] on the device"):
        next(stream)
    assert in_use(segmenter) == 0
    np.testing.assert_array_equal(segmenter(picture, vocabulary).labels, want)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_stream_that_is_closed_early_leaves_the_next_one_right(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    frame: Nv12Frame,
    device: HostDevice,
    window: Window,
) -> None:
    want = segmenter(frame, vocabulary, window=window).labels
    taken = []
    for _ in range(3):
        stream = segmenter.stream([frame] * 5, vocabulary, window=window)
        next(stream)
        stream.close()
        assert in_use(segmenter) == 0
        taken.append(len(device.open))
    assert taken[0] == taken[1] == taken[2]
    np.testing.assert_array_equal(segmenter(frame, vocabulary, window=window).labels, want)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("nv12", [False, True])
def test_two_images_on_their_way_wait_for_nothing(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    picture: ImageArray,
    frame: Nv12Frame,
    device: HostDevice,
    window: Window,
    nv12: bool,
) -> None:
    """Of a stream, the host waits once for each result, behind the work of the next image."""
    image = frame if nv12 else picture
    for _ in segmenter.stream([image] * 3, vocabulary, window=window):
        pass  # all memory is there
    device.log.clear()
    for _ in segmenter.stream([image] * 3, vocabulary, window=window):
        pass
    kept = ("upload", "download", "synchronize", "allocate", "allocate_host", "prepare")
    names = [one.name for one in device.calls(*kept)]
    sent = ["upload", "download"]
    assert names == [*sent, *sent, "synchronize", *sent, "synchronize", "synchronize"]
