"""Images on a device: the same pictures as on the CPU, and the host waits for nothing between."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.device.arrays import DeviceArray
from escnet_runtime.errors import BackendError, DeviceError, EscNetError, OutOfDeviceMemory
from escnet_runtime.frames import Nv12Frame
from escnet_runtime.gpu.pipeline import Picture
from escnet_runtime.gpu.pixels import Pixels, frame_pixels
from escnet_runtime.images import ImageArray
from tests.device.host_device import HostDevice
from tests.gpu.conftest import Rig, RigMaker

Floats = npt.NDArray[np.float32]
WAITS = ("synchronize", "allocate", "allocate_host", "prepare", "free", "free_host")


def assert_same(got: Picture, want: Picture) -> None:
    """Equal labels, and confidences to a rounding of float16."""
    np.testing.assert_array_equal(got.labels, want.labels)
    assert got.labels.dtype in (np.uint8, np.uint16)
    np.testing.assert_allclose(got.confidence, want.confidence, atol=2e-3)


# Results


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(
    ("categories", "chunk"), [(1, 4), (3, 4), (7, 100), (8, 4), (13, 8), (30, 12)]
)
def test_pictures_are_those_of_the_pipeline_on_the_cpu(
    categories: int, chunk: int, lazy: bool, rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    rig = rig_maker(chunk=chunk, lazy=lazy)
    want = rig.expected(image, text[:categories])
    assert categories < 3 or np.unique(want.labels).size > 1
    assert_same(rig.picture(image, text[:categories]), want)


def test_more_than_256_categories_have_wide_labels(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    rig = rig_maker(chunk=64)
    picture = rig.picture(image, text)
    assert picture.labels.dtype == np.uint16
    assert_same(picture, rig.expected(image, text))


def test_sizes_and_vocabularies_may_change_from_image_to_image(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    """They share one arena: nothing of an image may leak into the next."""
    others = [image, image[:5], np.tile(image, (2, 1, 1)), image[:, :4]]
    vocabularies = [text[:5], text[20:40], text[5:10], text[:1]]
    for round_ in range(2):
        for turn in range(4):
            pixels, words = others[turn], vocabularies[(turn + round_) % 4]
            assert_same(rig.picture(pixels, words), rig.expected(pixels, words))


def test_a_vocabulary_of_the_same_bucket_replaces_the_one_before(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    for words in (text[:7], text[10:14], text[:7]):
        assert_same(rig.picture(image, words), rig.expected(image, words))


def test_padding_is_made_of_real_categories(rig: Rig, image: ImageArray, text: Floats) -> None:
    """A graph sees no row that it would not see without padding."""
    words = text[:5].copy()
    seen = []

    def watch(graph: str, inputs: Mapping[str, Any]) -> None:
        if "text" in inputs and inputs["text"].any():  # it is tried out on zeros
            seen.append(inputs["text"].copy())

    rig.graphs.watch = watch
    rig.picture(image, words)
    assert {len(rows) for rows in seen} == {8}
    assert all((rows[:, None] == words).all(axis=2).any(axis=1).all() for rows in seen)


# What the host does


def test_an_image_is_one_upload_and_one_download_and_no_wait_between(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    words = text[:13]
    rig.picture(image, words)
    rig.device.log.clear()
    flight = rig.pipeline.submit(image, words)
    names = [one.name for one in rig.device.log]
    assert names.count("upload") == names.count("download") == 1
    assert names.index("upload") < names.index("launch") < names.index("download")
    assert not rig.device.calls(*WAITS)
    rig.pipeline.finish(flight)
    assert [one.name for one in rig.device.calls(*WAITS)] == ["synchronize"]


def test_another_vocabulary_waits_for_nothing_after_the_upload(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    rig.picture(image, text[:8])
    rig.device.log.clear()
    flight = rig.pipeline.submit(image, text[8:16])
    names = [one.name for one in rig.device.log]
    last_upload = len(names) - names[::-1].index("upload")
    assert not set(names[last_upload:]) & set(WAITS)
    rig.pipeline.finish(flight)


def test_a_vocabulary_is_sent_once_for_images_of_any_size(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    words = text[:8]
    for pixels in (image, image[:7]):
        rig.picture(pixels, words)
    rig.device.log.clear()
    for pixels in (image, image[:7], image):
        rig.picture(pixels, words)
    assert len(rig.device.calls("upload")) == 3  # the images


def test_a_vocabulary_is_sent_anew_for_chunks_of_another_size(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    """Its chunks lie elsewhere then; what was made ready for the first chunk stays in use."""
    words = text[:20]
    rig.pipeline.plan(64, (11, 9))  # the arena does not grow any more
    rig.picture(image, words)
    rig.pipeline.chunk = 4
    for pixels in (image[:7], image, image[:7]):
        assert_same(rig.picture(pixels, words), rig.expected(pixels, words))


def test_the_next_image_is_on_its_way_before_the_first_is_done(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    """Uploads and downloads have streams of their own."""
    words, darker = text[:7], image // 2
    want = [rig.expected(pixels, words) for pixels in (image, darker)]
    rig.picture(image, words)
    rig.device.log.clear()
    flights = [rig.pipeline.submit(pixels, words) for pixels in (image, darker)]
    assert not rig.device.calls("synchronize")
    for flight, picture in zip(flights, want, strict=True):
        assert_same(rig.pipeline.finish(flight), picture)
    streams = {one.detail for one in rig.device.calls("record")}
    assert len(streams) == 3


# Memory


def used(device: HostDevice) -> int:
    """Bytes of device memory that are taken."""
    free, total = device.memory()
    return total - free


def test_the_plan_is_what_images_take(rig: Rig, image: ImageArray, text: Floats) -> None:
    before = used(rig.device)
    plan = rig.pipeline.plan(20, (11, 9))
    planned = used(rig.device) - before
    flights = [rig.pipeline.submit(image, text[:20]) for _ in range(2)]
    for flight in flights:
        rig.pipeline.finish(flight)
    assert used(rig.device) - before == planned
    assert abs(plan.total_bytes - planned) < 0.1 * planned
    assert plan.categories == 24
    assert plan.size == (11, 9)


@pytest.mark.parametrize("width", [9, 600])
def test_after_a_plan_the_first_image_of_any_kind_allocates_nothing(
    rig: Rig, text: Floats, width: int
) -> None:
    """RGB, RGBA on the device, NV12 on either side with the padded rows that decoders have."""
    random = np.random.default_rng(5)
    height, words = 11, text[:20]
    rgba = random.integers(0, 256, (height, width, 4), np.uint8)
    pitch = -(-width // 512) * 512
    frame = Nv12Frame(
        luma=random.integers(0, 256, (height, pitch), np.uint8),
        chroma=random.integers(0, 256, (6, pitch), np.uint8),
        width=width,
    )
    before = used(rig.device)
    plan = rig.pipeline.plan(20, (height, width))
    planned = used(rig.device) - before
    assert abs(plan.total_bytes - planned) < 0.1 * planned
    rgb = np.ascontiguousarray(rgba[:, :, :3])
    rig.picture(rgb, words)  # the vocabulary is sent from a place of its own
    made: list[tuple[ImageArray | Pixels, ImageArray]] = [
        (rgb, rgb),
        (taken(rig, rgba), rgb),
        (taken(rig, rgb), rgb),
        (frame_pixels(frame), frame.rgb()),
        (taken(rig, frame), frame.rgb()),
    ]
    lent = used(rig.device)
    for pixels, want in made:
        rig.device.log.clear()
        flights = [rig.pipeline.submit(pixels, words) for _ in range(2)]
        assert not rig.device.calls("allocate", "allocate_host", "free", "free_host")
        for flight in flights:
            picture = rig.pipeline.finish(flight)
            assert_same(picture, rig.expected(want, words))
            assert picture.image is None or np.array_equal(picture.image, want)
            assert (picture.image is None) == (pixels is rgb)
    assert used(rig.device) == lent


def test_wider_rows_than_known_take_a_larger_slot(rig: Rig, text: Floats) -> None:
    frame = Nv12Frame(
        luma=np.random.default_rng(6).integers(0, 256, (11, 4096), np.uint8),
        chroma=np.random.default_rng(7).integers(0, 256, (6, 4096), np.uint8),
        width=9,
    )
    rig.pipeline.plan(20, (11, 9))
    pixels = taken(rig, frame)
    for _ in range(2):
        picture = rig.pipeline.finish(rig.pipeline.submit(pixels, text[:20]))
        assert_same(picture, rig.expected(frame.rgb(), text[:20]))


def taken(rig: Rig, image: ImageArray | Nv12Frame) -> Pixels:
    """The same on the device, as another library has it."""
    if isinstance(image, Nv12Frame):
        luma, chroma = (lent(rig.device, plane) for plane in (image.luma, image.chroma))
        return rig.pipeline.taken(Nv12Frame(luma=luma, chroma=chroma, width=image.width))
    return rig.pipeline.taken(lent(rig.device, image))


def lent(device: HostDevice, array: ImageArray) -> DeviceArray:
    """An array whose memory is another library's."""
    return DeviceArray(device, device.lend(array), array.shape, array.dtype, owner=array)


def test_too_little_memory_makes_the_chunk_smaller_and_changes_nothing(
    rig_maker: RigMaker, image: ImageArray, text: Floats, caplog: pytest.LogCaptureFixture
) -> None:
    words = text[:96]
    need = {}
    for chunk in (96, 4):
        plan = rig_maker(chunk=chunk).pipeline.plan(96, (11, 9))
        need[chunk] = plan.total_bytes - plan.slot_bytes // 2  # one image is on its way, not two
    assert need[4] < need[96] - 1000  # a smaller chunk does fit
    rig = rig_maker(chunk=96, total=need[96] - 1000)
    with caplog.at_level(logging.WARNING):
        picture = rig.picture(image, words)
    assert 4 <= rig.pipeline.chunk < 96
    assert f"trying {rig.pipeline.chunk}" in caplog.messages[-1]
    assert_same(picture, rig.expected(image, words))
    caplog.clear()
    rig.picture(image, words)
    assert not caplog.messages


def test_what_fits_at_no_chunk_says_what_would(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    enough = rig_maker(chunk=4).pipeline.plan(64, (11, 9)).total_bytes
    rig = rig_maker(chunk=64, total=enough + 40_000)
    with pytest.raises(OutOfDeviceMemory) as caught:
        rig.picture(image, text[:300])
    assert "300 categories on an image of 11×9 pixels" in str(caught.value)
    assert "smallest chunk (4)" in str(caught.value)
    assert "categories would fit" in str(caught.value)
    number = int(str(caught.value).split("about ")[1].split()[0])
    assert 0 < number < 300
    assert_same(rig.picture(image, text[:number]), rig.expected(image, text[:number]))


def test_running_out_of_memory_inside_a_graph_makes_the_chunk_smaller_too(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    def fail(graph: str) -> None:
        if rig.pipeline.chunk > 4:
            raise OutOfDeviceMemory(f"graph {graph!r} failed: out of memory")

    rig.graphs.before = fail
    assert_same(rig.picture(image, text[:9]), rig.expected(image, text[:9]))
    assert rig.pipeline.chunk == 4


# Failures


def test_an_error_in_the_middle_of_an_image_leaves_no_trace(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    words = text[:13]
    rig.picture(image, words)
    there = used(rig.device)

    def fail(graph: str) -> None:
        if graph == "esc1_image":
            raise BackendError("graph 'esc1_image' failed: made up")

    rig.graphs.before = fail
    for _ in range(3):
        with pytest.raises(BackendError, match="made up"):
            rig.picture(image, words)
    rig.graphs.before = lambda graph: None
    assert_same(rig.picture(image, words), rig.expected(image, words))
    assert used(rig.device) == there


def test_an_image_on_its_way_survives_the_failure_of_the_next(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    words = text[:5]
    flight = rig.pipeline.submit(image, words)

    def fail(graph: str) -> None:
        raise BackendError("made up")

    rig.graphs.before = fail
    with pytest.raises(BackendError):
        rig.pipeline.submit(image // 2, words)
    assert_same(rig.pipeline.finish(flight), rig.expected(image, words))


def test_an_image_that_was_on_its_way_when_all_was_closed_says_so(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    flight = rig.pipeline.submit(image, text[:5])
    rig.pipeline.close()
    with pytest.raises(EscNetError, match="closed while the image was on its way"):
        rig.pipeline.finish(flight)
    rig.pipeline.drop(flight)


# CUDA graphs


def test_one_graph_is_launched_for_a_whole_image(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    rig = rig_maker(capturable=True)
    for words in (text[:5], text[:7], text[9:12]):  # of one bucket
        assert_same(rig.picture(image, words), rig.expected(image, words))
    assert len(rig.device.calls("capture")) == 1
    rig.device.log.clear()
    rig.picture(image // 2, text[9:12])
    names = [one.name for one in rig.device.log]
    assert names.count("graph") == 1
    assert "graph_run" not in names


def test_graphs_are_kept_by_bucket_and_size_and_the_oldest_goes(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    rig = rig_maker(capturable=True)
    rig.pipeline.plan(64, (11, 9))  # the largest first: the arena does not grow any more
    buckets = [8, 16, 24, 32, 40, 48, 56, 64, 8]
    for bucket in buckets:
        rig.picture(image, text[:bucket])
    assert len(rig.device.calls("capture")) == 8
    open_graphs = [one for one in rig.device.open if one.kind == "graph"]
    assert len(open_graphs) == 8
    rig.picture(image[:7], text[:8])
    rig.picture(image, text[:8])  # was used last but one: still there
    assert len(rig.device.calls("capture")) == 9
    rig.picture(image, text[:16])  # was the oldest
    assert len(rig.device.calls("capture")) == 10
    assert len([one for one in rig.device.open if one.kind == "graph"]) == 8


def test_what_cannot_be_captured_runs_one_by_one_and_says_so_once(
    rig_maker: RigMaker,
    image: ImageArray,
    text: Floats,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = rig_maker(capturable=True)

    def fail(*_: Any) -> Any:
        raise DeviceError("the driver fails: operation not permitted while capturing")

    monkeypatch.setattr(rig.device, "capture", fail)
    with caplog.at_level(logging.WARNING):
        for words in (text[:5], text[:20], text[:5]):
            assert_same(rig.picture(image, words), rig.expected(image, words))
    assert len(caplog.messages) == 1
    assert "not permitted while capturing" in caplog.text


# Measuring


def test_a_profile_has_the_time_of_every_stage(rig: Rig, image: ImageArray, text: Floats) -> None:
    spent = rig.pipeline.profile(image, text[:9])
    graphs = {name for name in rig.manifest.stages if name != "text_encoder"}
    stages = graphs | {"weights", "preprocess", "prompts", "sums", "upsample_argmax"}
    assert spent.device.keys() == spent.host.keys() == stages
    assert all(value >= 0 for value in spent.device.values())
    assert all(value > 0 for value in spent.host.values())


def test_what_a_backend_keeps_of_runs_is_freed_now_and_then(
    rig: Rig, image: ImageArray, text: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime keeps memory of every run that nobody waits for."""
    monkeypatch.setattr("escnet_runtime.gpu.pipeline._TIDY_EVERY", 3)
    untidy = []
    for _ in range(9):
        assert_same(rig.picture(image, text), rig.expected(image, text))
        untidy.append(rig.graphs.untidy)
    assert untidy == [True, True, True, False] * 2 + [True]


def test_graphs_that_could_not_be_waited_for_stay(
    rig: Rig, image: ImageArray, text: Floats
) -> None:
    """Of a library whose memory must not be freed then; later runs wait for them after all."""
    words = text[:9]
    want = rig.picture(image, words)
    assert rig.graphs.untidy

    def fail(graph: str) -> None:
        if graph == "esc1_sam" and rig.pipeline.chunk > 4:
            raise OutOfDeviceMemory(f"graph {graph!r} failed: out of memory")

    loaded: list[set[str]] = []

    def unload() -> None:
        free()
        loaded.append(set(rig.graphs.loaded))

    free, rig.graphs.unload = rig.graphs.unload, unload  # type: ignore[method-assign]
    rig.graphs.before = fail
    assert_same(rig.picture(image, words), want)
    assert "image_encoder" not in loaded[0]  # ran before the one that failed
    assert {"esc1_sam", "esc1_text", "decoder"} <= loaded[0]
    rig.pipeline.close()
    assert not rig.graphs.freed_untidily


def test_graphs_are_waited_for_before_they_are_freed(
    rig_maker: RigMaker, image: ImageArray, text: Floats
) -> None:
    rig = rig_maker()
    rig.picture(image, text[:20])
    assert rig.graphs.untidy
    rig.picture(np.repeat(image, 30, axis=0), text)  # a larger arena takes the place of the first
    rig.pipeline.close()
    assert rig.graphs.closed
    assert not rig.graphs.freed_untidily
