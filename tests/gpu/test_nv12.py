"""Frames in NV12 through a Segmenter: what their RGB gives, and no conversion on the host."""

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime import ImageError, Nv12Frame, Segmenter, Vocabulary, YuvEncoding
from escnet_runtime.commands.segment_video import segment_video
from escnet_runtime.console import Console
from escnet_runtime.segmenter import ImageSource
from escnet_runtime.video import VideoReader, VideoWriter
from tests.device.host_device import HostDevice
from tests.gpu.conftest import NAMES, Lend

ENCODINGS = [
    YuvEncoding(matrix="bt601", range="full"),
    YuvEncoding(matrix="bt709", range="limited"),
]


def nv12(
    height: int = 12,
    width: int = 16,
    *,
    pitch: int = 0,
    encoding: YuvEncoding = ENCODINGS[1],
    seed: int = 0,
) -> Nv12Frame:
    """Random planes, rows ``pitch`` bytes apart."""
    random = np.random.default_rng(seed)
    wide = -(-width // 2) * 2
    luma = random.integers(0, 256, (height, pitch or width), np.uint8)
    chroma = random.integers(0, 256, (-(-height // 2), pitch or wide), np.uint8)
    return Nv12Frame(luma=luma, chroma=chroma, encoding=encoding, width=width)


def on_device(frame: Nv12Frame, lend: Lend) -> Nv12Frame:
    """The frame with its planes on the device."""
    return Nv12Frame(
        luma=lend(frame.luma),
        chroma=lend(frame.chroma),
        encoding=frame.encoding,
        width=frame.width,
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("height", "width", "pitch"), [(12, 16, 0), (12, 16, 32), (11, 15, 0), (1, 1, 0)]
)
def test_a_frame_gives_what_its_rgb_gives(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    lend: Lend,
    encoding: YuvEncoding,
    height: int,
    width: int,
    pitch: int,
) -> None:
    frame = nv12(height, width, pitch=pitch, encoding=encoding)
    want = segmenter(frame.rgb(), vocabulary)
    for one in (frame, on_device(frame, lend)):
        got = segmenter(one, vocabulary)
        np.testing.assert_array_equal(got.labels, want.labels)
        np.testing.assert_array_equal(got.confidence, want.confidence)
        np.testing.assert_array_equal(got.image, want.image)


def test_half_as_much_is_uploaded_and_the_host_waits_once(
    segmenter: Segmenter, vocabulary: Vocabulary, device: HostDevice, lend: Lend
) -> None:
    frame = nv12(pitch=32)
    lent = on_device(frame, lend)
    kept = ("upload", "download", "synchronize", "allocate", "allocate_host", "prepare")
    for one, uploaded in ((frame, [12 * 16 * 3 // 2]), (lent, [])):
        segmenter(one, vocabulary)
        device.log.clear()
        segmenter(one, vocabulary)
        assert [call.detail for call in device.calls("upload")] == uploaded
        names = [call.name for call in device.calls(*kept)]
        assert names == ["upload"] * len(uploaded) + ["download", "synchronize"]


def test_windows_and_observers_take_frames_too(
    segmenter: Segmenter, vocabulary: Vocabulary, lend: Lend
) -> None:
    frame = nv12(11, 15, pitch=32)
    whole = segmenter(frame.rgb(), vocabulary).labels
    windows = segmenter(frame.rgb(), vocabulary, window="sliding").labels
    for one in (frame, on_device(frame, lend)):
        got = segmenter(one, vocabulary, window="sliding")
        np.testing.assert_array_equal(got.labels, windows)
        seen = segmenter(one, vocabulary, observer=lambda *_: None)
        np.testing.assert_array_equal(seen.labels, whole)
        np.testing.assert_array_equal(seen.image, frame.rgb())


def test_a_stream_takes_frames_among_other_images(
    segmenter: Segmenter, vocabulary: Vocabulary, lend: Lend
) -> None:
    made = [nv12(seed=seed) for seed in range(4)]
    mixed: list[ImageSource] = [made[0], made[1].rgb(), on_device(made[2], lend), made[3]]
    for result, frame in zip(segmenter.stream(mixed, vocabulary), made, strict=True):
        np.testing.assert_array_equal(result.image, frame.rgb())
        np.testing.assert_array_equal(result.labels, segmenter(frame.rgb(), vocabulary).labels)


def test_frames_and_images_that_take_turns_share_memory(
    segmenter: Segmenter, vocabulary: Vocabulary, device: HostDevice
) -> None:
    frame = nv12()
    mixed: list[ImageSource] = [frame, frame.rgb(), frame.rgb(), frame, frame]
    for turn in range(2):
        device.log.clear()
        for _ in segmenter.stream(mixed, vocabulary):
            pass
        assert turn == 0 or not device.calls("allocate", "allocate_host", "free", "free_host")


def test_on_the_cpu_frames_are_converted_and_those_on_a_gpu_refused(
    on_cpu: Segmenter, lend: Lend
) -> None:
    frame, words = nv12(11, 15), on_cpu.vocabulary(NAMES)
    want = on_cpu(frame.rgb(), words)
    np.testing.assert_array_equal(on_cpu(frame, words).labels, want.labels)
    [streamed] = on_cpu.stream([frame], words)
    np.testing.assert_array_equal(streamed.image, frame.rgb())
    with pytest.raises(ImageError, match="got a frame on a GPU"):
        on_cpu(on_device(frame, lend), words)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Three frames of 48×64."""
    path = tmp_path / "bar.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for index in range(3):
            pixels: npt.NDArray[np.uint8] = np.full((48, 64, 3), 40, np.uint8)
            pixels[:, 8 * index : 8 * index + 16] = (220, 60, 30)
            writer.write(pixels)
    return path


def test_videos_go_to_the_device_as_nv12(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    device: HostDevice,
    video: Path,
    tmp_path: Path,
) -> None:
    with VideoReader(str(video)) as reader:
        frames = list(reader)
    segmenter(frames[0], vocabulary)
    device.log.clear()
    options = argparse.Namespace(
        output=tmp_path,
        frames=None,
        no_overlay=False,
        no_legend=False,
        window="none",
        shortlist=None,
    )
    entry = segment_video(segmenter, vocabulary, str(video), options, Console(json=True))
    assert entry["frames"] == 3
    images = [one.detail for one in device.calls("upload") if one.detail == 48 * 64 * 3 // 2]
    assert len(images) == 3
    with VideoReader(entry["overlay"]) as reader:
        assert len(list(reader)) == 3
    with VideoReader(str(video)) as reader:
        pairs = zip(segmenter.stream(reader.nv12(), vocabulary), frames, strict=True)
        for result, frame in pairs:
            want = segmenter(frame, vocabulary).labels
            # FFmpeg's colours are off by a level or two.
            assert (result.labels == want).mean() >= 0.98
