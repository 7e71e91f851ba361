"""Sliding windows on a device: the pictures of the CPU, and the host waits for nothing between."""

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.errors import BackendError, OutOfDeviceMemory
from escnet_runtime.gpu.pipeline import Picture
from escnet_runtime.images import ImageArray
from tests.device.host_device import HostDevice
from tests.gpu.conftest import Rig, RigMaker

Floats = npt.NDArray[np.float32]
WAITS = ("synchronize", "allocate", "allocate_host", "prepare", "free", "free_host")


def assert_same(got: Picture, want: Picture) -> None:
    """Equal labels, and confidences to a rounding of float16."""
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.confidence, want.confidence, atol=2e-3)


def used(device: HostDevice) -> int:
    """Bytes of device memory that are taken."""
    free, total = device.memory()
    return total - free


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(("categories", "chunk"), [(1, 4), (7, 100), (13, 8), (30, 12)])
def test_pictures_are_those_of_the_cpu(
    categories: int, chunk: int, lazy: bool, rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    rig = rig_maker(chunk=chunk, lazy=lazy)
    words = text[:categories]
    want = rig.expected_in_windows(image, words)
    assert categories < 3 or np.unique(want.labels).size > 1
    assert categories < 3 or (want.labels != rig.expected(image, words).labels).any()
    assert_same(rig.picture(image, words, sliding=True), want)


def test_more_than_256_categories_have_wide_labels(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    picture = rig_maker(chunk=64).picture(image, text, sliding=True)
    assert picture.labels.dtype == np.uint16
    assert_same(picture, rig_maker().expected_in_windows(image, text))


@pytest.mark.parametrize("capturable", [True, False])
def test_images_with_and_without_windows_take_turns(
    rig_maker: RigMaker, image: ImageArray, text: Floats, capturable: bool
) -> None:
    """They share one arena: nothing of an image may leak into the next."""
    rig = rig_maker(capturable=capturable)
    for _ in range(2):
        for pixels in (image, np.tile(image, (1, 2, 1)), image[:5]):
            for words in (text[:5], text[20:40]):
                got = rig.picture(pixels, words, sliding=True)
                assert_same(got, rig.expected_in_windows(pixels, words))
                assert_same(rig.picture(pixels, words), rig.expected(pixels, words))


@pytest.mark.parametrize("capturable", [True, False])
def test_an_image_is_one_upload_and_one_download_without_a_wait_between(
    rig_maker: RigMaker, image: ImageArray, text: Floats, capturable: bool
) -> None:
    rig = rig_maker(capturable=capturable)
    words = text[:13]
    rig.picture(image, words, sliding=True)
    rig.device.log.clear()
    flight = rig.pipeline.submit(image // 2, words, sliding=True)
    assert not rig.device.calls(*WAITS)
    rig.pipeline.finish(flight)
    assert len(rig.device.calls("upload")) == len(rig.device.calls("download")) == 1
    assert len(rig.device.calls("synchronize")) == 1
    assert len(rig.device.calls("graph")) == capturable
    launched = [one.detail for one in rig.device.calls("launch")]
    if capturable:
        assert launched == ["escnet_resize"] * 2  # their addresses change from image to image
    else:
        assert launched.count("escnet_canvas") == 5 * 2  # of two chunks
        assert launched.count("escnet_upsample_argmax") == 1


def test_the_plan_is_what_images_take_and_the_canvas_is_in_it(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    before = used(rig.device)
    plan = rig.pipeline.plan(20, (11, 9), sliding=True)
    planned = used(rig.device) - before
    flights = [rig.pipeline.submit(image, text[:20], sliding=True) for _ in range(2)]
    for flight in flights:
        rig.pipeline.finish(flight)
    assert used(rig.device) - before == planned
    assert abs(plan.total_bytes - planned) < 0.1 * planned
    [canvas] = [row for row in plan.rows if row.name == "canvas"]
    assert (canvas.shape, canvas.grows) == ((24, 13, 13), "categories")
    assert "in sliding windows" in plan.table()
    assert "canvas" not in rig.pipeline.plan(20, (11, 9)).table()


def test_too_little_memory_makes_the_chunk_smaller_and_then_says_what_would_fit(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    words = text[:96]
    need = {}
    for chunk in (96, 4):
        plan = rig_maker(chunk=chunk).pipeline.plan(96, (11, 9), sliding=True)
        need[chunk] = plan.total_bytes - plan.slot_bytes // 2  # one image is on its way, not two
    assert need[4] < need[96] - 1000
    rig = rig_maker(chunk=96, total=(need[96] + need[4]) // 2)
    assert_same(rig.picture(image, words, sliding=True), rig.expected_in_windows(image, words))
    assert 4 <= rig.pipeline.chunk < 96
    with pytest.raises(OutOfDeviceMemory, match="categories would fit"):
        rig.picture(image, text, sliding=True)
    assert_same(rig.picture(image, words, sliding=True), rig.expected_in_windows(image, words))


def test_an_error_in_the_middle_of_the_windows_leaves_no_trace(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    words = text[:13]
    rig.picture(image, words, sliding=True)
    there, left = used(rig.device), [3]

    def fail(graph: str) -> None:
        left[0] -= graph == "decoder"
        if left[0] < 0:
            raise BackendError("graph 'decoder' failed: made up")

    rig.graphs.before = fail
    with pytest.raises(BackendError, match="made up"):
        rig.picture(image, words, sliding=True)
    rig.graphs.before = lambda graph: None
    assert_same(rig.picture(image, words, sliding=True), rig.expected_in_windows(image, words))
    assert used(rig.device) == there


def test_what_a_backend_keeps_is_freed_after_as_many_runs_as_without_windows(
    rig: Rig, image: ImageArray, text: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("escnet_runtime.gpu.pipeline._TIDY_EVERY", 10)
    untidy = []
    for _ in range(6):
        rig.picture(image, text[:5], sliding=True)
        untidy.append(rig.graphs.untidy)
    assert untidy == [True, True, False] * 2
