"""On a real GPU, with ONNX Runtime's CUDA provider: the labels of the CPU, and no growth."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from escnet_runtime import BackendError, Nv12Frame, Segmenter
from escnet_runtime.device import open_device
from escnet_runtime.images import ImageArray

pytestmark = pytest.mark.gpu

NAMES = ["sky", "tree", "grass", "road", "house", "car"]


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Segmenter]:
    """On the first GPU."""
    try:
        made = Segmenter(
            tiny_bundle, "onnxruntime-cuda", cache=tmp_path_factory.mktemp("embeddings")
        )
    except BackendError as error:
        pytest.skip(f"needs ONNX Runtime's CUDA provider: {error}")
    with made:
        yield made


@pytest.fixture(scope="module")
def picture() -> ImageArray:
    """uint8 [60, 80, 3]."""
    y, x = np.mgrid[:60, :80]
    areas = [255 * (y < 25), 3 * x, 200 * ((x - 40) ** 2 + (y - 40) ** 2 < 240)]
    return np.stack(areas, axis=-1).astype(np.uint8)


def test_labels_are_those_of_the_cpu(
    segmenter: Segmenter, tiny_bundle: Path, picture: ImageArray
) -> None:
    got = segmenter(picture, segmenter.vocabulary(NAMES))
    with Segmenter(tiny_bundle, "onnxruntime", cache=None) as on_cpu:
        want = on_cpu(picture, on_cpu.vocabulary(NAMES))
    # The weights are random: labels near the border of two areas are near-ties.
    assert (got.labels == want.labels).mean() > 0.97
    assert np.abs(got.confidence.astype(np.float32) - want.confidence).max() < 0.02


def test_sliding_windows_are_those_of_the_cpu(
    segmenter: Segmenter, tiny_bundle: Path, picture: ImageArray
) -> None:
    got = segmenter(picture, segmenter.vocabulary(NAMES), window="sliding")
    with Segmenter(tiny_bundle, "onnxruntime", cache=None) as on_cpu:
        want = on_cpu(picture, on_cpu.vocabulary(NAMES), window="sliding")
    assert (got.labels == want.labels).mean() > 0.97


def test_a_frame_in_nv12_gives_what_its_rgb_gives(segmenter: Segmenter) -> None:
    random = np.random.default_rng(2)
    frame = Nv12Frame(
        luma=random.integers(0, 256, (61, 96), np.uint8),
        chroma=random.integers(0, 256, (31, 96), np.uint8),
        width=79,
    )
    vocabulary = segmenter.vocabulary(NAMES)
    got, want = segmenter(frame, vocabulary), segmenter(frame.rgb(), vocabulary)
    np.testing.assert_array_equal(got.image, want.image)
    assert (got.labels == want.labels).mean() > 0.999


def test_a_stream_gives_what_single_images_give(segmenter: Segmenter, picture: ImageArray) -> None:
    vocabulary = segmenter.vocabulary(NAMES)
    frames = [np.roll(picture, 7 * turn, axis=1) for turn in range(6)]
    want = [segmenter(frame, vocabulary).labels for frame in frames]
    got = [result.labels for result in segmenter.stream(frames, vocabulary)]
    np.testing.assert_array_equal(got, want)


def test_memory_does_not_grow(segmenter: Segmenter, picture: ImageArray) -> None:
    vocabulary = segmenter.vocabulary(NAMES)
    for _ in segmenter.stream([picture] * 10, vocabulary):
        pass
    with open_device() as device:
        before = device.memory()[0]
        for _ in segmenter.stream([picture] * 100, vocabulary):
            pass
        assert before - device.memory()[0] < 4 * 2**20


@pytest.mark.parametrize("shortlist", [None, 2])
def test_an_array_that_is_still_written_is_waited_for(
    segmenter: Segmenter, picture: ImageArray, shortlist: int | None
) -> None:
    """With a shortlist it is downloaded first, on a stream of its own."""
    import torch

    vocabulary = segmenter.vocabulary(NAMES)
    want = segmenter(picture, vocabulary, shortlist=shortlist)
    source = torch.from_numpy(picture).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        image = torch.zeros_like(source)
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        image.copy_(source)
        got = segmenter(image, vocabulary, shortlist=shortlist)
    np.testing.assert_array_equal(got.image, picture)
    np.testing.assert_array_equal(got.labels, want.labels)


def test_after_a_plan_the_first_image_of_a_kind_takes_no_memory(
    segmenter: Segmenter, picture: ImageArray
) -> None:
    import torch

    vocabulary = segmenter.vocabulary(NAMES)
    rgba = torch.from_numpy(np.concatenate([picture, picture[:, :, :1]], axis=2)).cuda()
    segmenter.plan(len(NAMES), (60, 80))
    segmenter(picture, vocabulary)
    assert segmenter.device_pipeline is not None
    there = segmenter.device_pipeline._slots.bytes
    segmenter(rgba, vocabulary)
    assert segmenter.device_pipeline._slots.bytes == there


PROGRAM = """
import sys
import numpy as np
from escnet_runtime import Segmenter

segmenter = Segmenter(sys.argv[1], "onnxruntime-cuda", cache=None)
vocabulary = segmenter.vocabulary(["sky", "tree"])
for _ in range(5):
    segmenter(np.zeros((60, 80, 3), np.uint8), vocabulary)
if sys.argv[2] == "dropped":
    del segmenter
print("end", flush=True)
"""


@pytest.mark.parametrize("way", ["kept", "dropped"])
@pytest.mark.usefixtures("segmenter")
def test_one_that_nobody_closes_does_not_take_the_process_with_it(
    tiny_bundle: Path, way: str
) -> None:
    """Its sessions have run without being waited for: freed by chance, they end the process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle), way],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_the_profile_adds_up(segmenter: Segmenter, picture: ImageArray) -> None:
    assert segmenter.device_pipeline is not None
    spent = segmenter.device_pipeline.profile(picture, segmenter.vocabulary(NAMES).embeddings)
    assert spent.device["image_encoder"] > 0
    assert 0 < spent.device["prompts"] < sum(spent.device.values())
    assert sum(spent.host.values()) > 0
