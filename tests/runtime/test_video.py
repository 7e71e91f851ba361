"""Videos: what is written is read, what is no video says so, and escnet-segment takes them."""

import functools
import http.server
import json
import os
import re
import signal
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from escnet_runtime import Nv12Frame, Segmentation, YuvEncoding
from escnet_runtime.commands.segment import main
from escnet_runtime.commands.segment_video import _Seen, is_video
from escnet_runtime.errors import ImageError, InputError
from escnet_runtime.images import ImageArray, load_image
from escnet_runtime.newest import Newest
from escnet_runtime.video import VideoReader, VideoWriter, _encoding, _nv12_frame, _Turn
from escnet_runtime.video_source import is_live, source_stem, without_secrets


def frame(index: int, height: int = 48, width: int = 64) -> ImageArray:
    """A bar that moves, uint8."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[:, 8 * index : 8 * index + 16] = (220, 60, 30)
    return pixels


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five frames, ten a second."""
    path = tmp_path / "bar.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for index in range(5):
            writer.write(frame(index))
    return path


def test_what_is_written_is_read(video: Path) -> None:
    with VideoReader(str(video)) as reader:
        assert reader.rate == 10
        assert reader.frames == 5
        read = list(reader)
    assert len(read) == 5
    for index, pixels in enumerate(read):
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels.astype(int) - frame(index)).mean() < 12  # it is lossy


@pytest.mark.parametrize(
    ("form", "space", "side", "matrix", "range_"),
    [
        ("yuv420p", 1, 1, "bt709", "limited"),
        ("yuv420p", 2, 0, "bt601", "limited"),
        ("yuv420p", 6, 2, "bt601", "full"),
        ("yuvj420p", 5, 0, "bt601", "full"),
        ("nv12", 1, 1, "bt709", "limited"),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 65)])
def test_frames_of_four_two_zero_become_nv12_without_a_change(
    form: str, space: int, side: int, matrix: str, range_: str, height: int, width: int
) -> None:
    """Also full range, which FFmpeg's own conversion to NV12 would make limited."""
    decoded = av.VideoFrame(width, height, form)
    decoded.colorspace, decoded.color_range = space, side
    random = np.random.default_rng(3)
    for plane in decoded.planes:
        plane.update(random.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    encoding = _encoding(decoded)
    assert encoding == YuvEncoding(matrix=matrix, range=range_)  # type: ignore[arg-type]
    made = _nv12_frame(decoded, encoding)
    assert made.size == (height, width)
    luma, *chroma = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        for plane in decoded.planes
    )
    np.testing.assert_array_equal(made.luma, luma[:height, :width])
    pairs = made.chroma.reshape(len(made.chroma), -1, 2)
    half, wide = -(-height // 2), -(-width // 2)
    assert pairs.shape == (half, wide, 2)
    want = chroma if len(chroma) == 2 else [chroma[0][:, 0::2], chroma[0][:, 1::2]]
    for channel in range(2):
        np.testing.assert_array_equal(pairs[:, :, channel], want[channel][:half, :wide])


@pytest.mark.parametrize(("form", "space"), [("yuv420p", 9), ("yuv444p", 1), ("rgb24", 2)])
def test_other_frames_stay_rgb(form: str, space: int) -> None:
    decoded = av.VideoFrame(64, 48, form)
    decoded.colorspace = space
    assert _encoding(decoded) is None


def test_a_video_as_nv12_has_the_colours_that_it_has_as_rgb(video: Path) -> None:
    with VideoReader(str(video)) as reader:
        plain = list(reader)
    with VideoReader(str(video)) as reader:
        frames = list(reader.nv12())
    assert len(frames) == 5
    for one, other in zip(frames, plain, strict=True):
        assert isinstance(one, Nv12Frame)
        # FFmpeg's tables are off by a level or two.
        assert np.abs(one.rgb().astype(int) - other).max() <= 3


def test_odd_sides_lose_a_row_and_a_column(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        writer.write(frame(0, 49, 65))
        with pytest.raises(InputError, match="32×48 pixels for a video of 64×48"):
            writer.write(frame(0, 48, 32))
        with pytest.raises(InputError, match="sides of at least 2"):
            writer.write(frame(0, 1, 64))
    with VideoReader(str(path)) as reader:
        [pixels] = reader
    assert pixels.shape == (48, 64, 3)


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    for name in (bad, tmp_path / "none.mp4"):
        with pytest.raises(ImageError, match=f"cannot open the video .*{name.name}") as caught:
            VideoReader(str(name))
        assert str(caught.value).count(str(name)) == 1
        assert "Errno" not in str(caught.value)
    with pytest.raises(ImageError, match="cannot open the camera camera:250"):
        VideoReader("camera:250")
    with pytest.raises(InputError, match="cannot write the video"):
        VideoWriter(tmp_path / "none" / "out.mp4", Fraction(10))


def test_a_video_is_segmented(
    tiny_bundle: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["--classes", "sky, car, dog", "--output", str(output), "--json"]
    assert main([str(tiny_bundle), str(video), *words, "--frames", "1", "--shortlist", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["shortlist"], document["videos"][0]["kept"]) == (2, 2)
    assert main([str(tiny_bundle), str(video), *words, "--frames", "3"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == []
    [entry] = document["videos"]
    assert entry["kept"] == 3
    assert entry["frames"] == 3
    assert (entry["width"], entry["height"]) == (64, 48)
    assert entry["frames_per_second"] > 0
    assert sum(entry["area"].values()) == pytest.approx(1)
    with VideoReader(entry["overlay"]) as reader:
        frames = list(reader)
        assert reader.rate == 10
    assert len(frames) == 3
    assert frames[0].shape[0] == 240  # enlarged, for the legend's sake
    assert frames[0].shape[1] > 320
    assert load_image(entry["legend"]).shape[2] == 3


def test_areas_of_a_video_are_those_of_all_its_frames() -> None:
    """Two thirds of the first frame are a car, all of the second sky; on a made-up clock."""
    names, clock = ("sky", "car", "dog"), [10.0]

    def result(*labels: int, kept: int) -> Segmentation:
        return Segmentation(
            labels=np.array([labels], np.uint8),
            confidence=np.ones((1, 3), np.float16),
            names=names,
            image=np.zeros((1, 3, 3), np.uint8),
            kept=kept,
        )

    def results() -> Iterator[Segmentation]:
        for one in (result(1, 0, 1, kept=3), result(0, 0, 0, kept=2)):
            clock[0] += 2.0
            yield one

    with pytest.MonkeyPatch.context() as patched:
        now = SimpleNamespace(perf_counter=lambda: clock[0])
        patched.setattr("escnet_runtime.commands.segment_video.time", now)
        vocabulary: Any = SimpleNamespace(names=names)
        seen = _Seen(vocabulary)
        assert len(list(seen.counted(results()))) == 2
    entry = seen.entry(legend=False)
    assert list(entry["area"].items()) == [("sky", pytest.approx(4 / 6)), ("car", 2 / 6)]
    assert (entry["frames"], entry["frames_per_second"], entry["kept"]) == (2, 0.5, 3)
    assert (entry["width"], entry["height"]) == (3, 1)


def test_without_a_legend_a_video_keeps_its_size(
    tiny_bundle: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--classes", "sky, car", "--output", str(tmp_path / "out"), "--no-legend", "--json"]
    assert main([str(tiny_bundle), str(video), *words, "--frames", "1"]) == 0
    [entry] = json.loads(capsys.readouterr().out)["videos"]
    with VideoReader(entry["overlay"]) as reader:
        [frame_] = reader
    assert frame_.shape == (48, 64, 3)


def test_an_error_in_the_middle_leaves_the_overlay_that_was_there(
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaking(_: VideoReader) -> Iterator[ImageArray]:
        yield frame(0)
        raise ImageError("cannot read on")

    monkeypatch.setattr(VideoReader, "__iter__", breaking)
    output = tmp_path / "out"
    output.mkdir()
    before = output / "bar_overlay.mp4"
    before.write_bytes(b"the one before")
    words = ["--classes", "sky, car", "--output", str(output), "--json"]
    assert main([str(tiny_bundle), str(video), *words]) == 1
    [entry] = json.loads(capsys.readouterr().out)["videos"]
    assert "cannot read on" in entry["error"]
    assert before.read_bytes() == b"the one before"
    assert list(output.iterdir()) == [before]


@pytest.mark.parametrize("camera", [False, True])
def test_ctrl_c_ends_a_camera_and_stops_at_a_file(
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    camera: bool,
) -> None:
    """What a file gives is whole, or is not there; the next one is not begun."""
    opened = []

    class Interrupted(VideoReader):
        def __init__(self, source: str) -> None:
            opened.append(source)
            super().__init__(str(video) if source == "camera:0" else source)

        def __iter__(self) -> Iterator[ImageArray]:
            for index, pixels in enumerate(super().__iter__()):
                if index == 2:
                    raise KeyboardInterrupt
                yield pixels

    monkeypatch.setattr("escnet_runtime.video.VideoReader", Interrupted)
    first = "camera:0" if camera else str(video)
    output = tmp_path / "out"
    words = [first, "next.mp4", "--classes", "sky, car", "--output", str(output), "--no-legend"]
    code = main([str(tiny_bundle), *words, "--json"])
    document = json.loads(capsys.readouterr().out)
    if camera:
        assert opened == ["camera:0", "next.mp4"]
        assert document["videos"][0]["frames"] == 2
        assert Path(document["videos"][0]["overlay"]).is_file()
    else:
        assert (code, opened) == (130, [str(video)])
        assert list(output.iterdir()) == []


_CAMERA = "rtsp://operator:secret@10.0.0.5:554/front/1?token=secret"


@pytest.mark.parametrize(
    ("source", "shown", "stem"),
    [
        (_CAMERA, "rtsp://10.0.0.5:554/front/1", "10.0.0.5_554_front_1"),
        ("https://cdn.example/a b/live.m3u8", "https://cdn.example/a b/live.m3u8", None),
        ("http://user@host", "http://host", "host"),
        ("RTSP://user:p%40ss/word@[::1]/x", "RTSP://…", "stream"),
        ("rtsp://user:12#secret@cam/x", "rtsp://…", "stream"),
        ("rtsp://user:s@e?cret@cam:554/x", "rtsp://…", "stream"),
        ("http://cam/live@1", "http://cam/live@1", "cam_live_1"),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234", "239.0.0.1_1234"),
        ("srt://", "srt://", "stream"),
        ("camera:0", "camera:0", "camera0"),
        ("films/a@b?c.mp4", "films/a@b?c.mp4", "a@b?c"),
    ],
)
def test_what_a_source_is_called(source: str, shown: str | None, stem: str | None) -> None:
    assert is_live(source) == (not source.startswith("films"))
    assert is_video(source)
    if shown is not None:
        assert without_secrets(f"error in {source}!", source) == f"error in {shown}!"
    found = source_stem(source)
    assert found == stem or (stem is None and re.fullmatch(r"[\w.-]{1,100}", found))


def test_no_password_is_in_what_an_error_quotes() -> None:
    source = "rtsp://user:sec\\ret@127.0.0.1:1/x"
    with pytest.raises(ImageError, match=r"rtsp://127\.0\.0\.1:1/x") as caught:
        VideoReader(source)
    assert "ret" not in str(caught.value)


def test_a_name_with_a_colon_is_a_file(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To FFmpeg it begins with a protocol, and some of these connect to another machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("2026-11-28T12:30:00.mp4", "tcp:127.0.0.1:9.mp4"):
        Path(name).write_bytes(video.read_bytes())
        with VideoReader(name) as reader:
            assert len(list(reader)) == 5
    with VideoWriter(Path("12:31.mp4"), Fraction(10)) as writer:
        writer.write(frame(0))
    assert Path("12:31.mp4").stat().st_size


def test_the_address_of_an_image_is_no_video() -> None:
    assert not is_video("https://host/cat.JPG?size=large")
    assert is_video("http://camera/video.mjpg")


def test_a_stream_of_the_network_is_read(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with VideoReader(str(video)) as source, VideoWriter(path, source.rate) as written:
        for frame in source:
            written.write(frame)
    with VideoReader(str(path)) as reader:
        expected = list(reader)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://me:secret@127.0.0.1:{server.server_address[1]}/"
            with VideoReader(f"{address}clip.mkv?token=secret") as reader:
                found = list(reader)
            with pytest.raises(ImageError, match="cannot open the video http") as caught:
                VideoReader(f"{address}none.mkv?token=secret")
        finally:
            server.shutdown()
            thread.join()
    assert len(found) == len(expected) > 2
    np.testing.assert_array_equal(found, expected)
    assert "secret" not in str(caught.value)


def test_of_a_camera_the_newest_frame_is_taken(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of what came meanwhile would grow for as long as the camera runs."""
    monkeypatch.setattr("escnet_runtime.video._opened", lambda _: av.open(str(video)))
    with VideoReader(str(video)) as reader:
        expected = list(reader)
        assert reader.left_out == 0
    with VideoReader("rtsp://camera") as reader:
        reader.times = deque()
        frames = iter(reader)
        found = [next(frames)]
        assert reader._newest is not None
        reader._newest._thread.join()  # whoever segments takes his time
        found += list(frames)
        assert len(found) in (1, 2)
        np.testing.assert_array_equal(found[-1], expected[-1])
        assert reader.left_out == len(expected) - len(found)
        assert len(reader.times) == len(found)
        assert reader.times[-1] == Fraction(4, 10)


def test_newest_passes_errors_on_and_can_be_left() -> None:
    go = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go.wait(10)
        yield 2
        raise OSError("the cable")

    newest = Newest(source())
    assert next(newest) == 1
    assert not newest.close(0.01)  # nothing comes
    go.set()
    assert newest.close(10)

    go.set()
    newest = Newest(source())
    newest._thread.join()
    assert next(newest) == 2
    with pytest.raises(OSError, match="the cable"):
        next(newest)
    assert newest.left_out == 1
    assert list(Newest(iter([7]))) == [7]


@pytest.mark.parametrize("end", ["SIGTERM", "lost"])
@pytest.mark.parametrize("source", ["camera:0", _CAMERA, "file"])
def test_what_ends_a_camera_keeps_what_it_saw(
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: str,
    source: str,
) -> None:
    """Service managers and containers end by SIGTERM; cables are pulled."""

    class Ending(VideoReader):
        def __init__(self, _: str) -> None:
            super().__init__(str(video))

        def __iter__(self) -> Iterator[ImageArray]:
            for index, pixels in enumerate(super().__iter__()):
                if index == 2 and end == "SIGTERM":
                    os.kill(os.getpid(), signal.SIGTERM)
                if index == 2:
                    raise ImageError(without_secrets(f"cannot read on in {name}", name))
                yield pixels

    monkeypatch.setattr("escnet_runtime.video.VideoReader", Ending)
    name, output = str(video) if source == "file" else source, tmp_path / "out"
    words = [name, "--classes", "sky, car", "--output", str(output), "--no-legend", "--json"]
    code = main([str(tiny_bundle), *words])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "secret" not in out + err
    if source == "file":
        assert code == (143 if end == "SIGTERM" else 1)
        assert list(output.iterdir()) == []
        return
    (overlay,) = output.glob("*_overlay.mp4")
    assert len(list(output.iterdir())) == 2
    with VideoReader(str(overlay)) as written:
        assert len(list(written)) == 2
    if end == "SIGTERM":
        assert code == 143
    else:
        (entry,) = document["videos"]
        assert (code, entry["frames"], entry["overlay"]) == (0, 2, str(overlay))
        assert entry["left_out"] == 0
        assert entry["ended_by"].startswith("cannot read on in")
        assert "what came before is kept" in err


@pytest.mark.parametrize("name", ["camera:0", "bar.mp4"])
def test_what_changes_its_size_ends_there(
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """A stream goes over to another size where its network is slow: what it gave before is kept."""

    class Changing(VideoReader):
        def __init__(self, _: str) -> None:
            super().__init__(str(video))

        def __iter__(self) -> Iterator[ImageArray]:
            for index, pixels in enumerate(super().__iter__()):
                yield pixels if index < 2 else pixels[:24, :32].copy()

    monkeypatch.setattr("escnet_runtime.video.VideoReader", Changing)
    source, output = name if name == "camera:0" else str(video), tmp_path / "out"
    words = [source, "--classes", "sky, car", "--output", str(output), "--json"]
    code = main([str(tiny_bundle), *words])
    [entry] = json.loads(capsys.readouterr().out)["videos"]
    said = entry["ended_by" if name == "camera:0" else "error"]
    assert said.startswith(f"frame 3 of {source} is 32×24, those before are 64×48")
    if name == "camera:0":
        assert (code, entry["frames"]) == (0, 2)
        with VideoReader(entry["overlay"]) as written:
            assert len(list(written)) == 2
    else:
        assert (code, list(output.iterdir())) == (1, [])
    assert main([str(tiny_bundle), *words, "--no-overlay"]) == 0
    [entry] = json.loads(capsys.readouterr().out)["videos"]
    assert entry["frames"] == 5


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_slide_show_is_not_called_cut_off(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"slides.{suffix}"
    with VideoWriter(path, Fraction(1, 8)) as writer:
        for _ in range(3):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    with VideoReader(str(path)) as reader:
        assert len(list(reader)) == 3
    assert not caplog.records


def test_a_file_that_is_cut_off_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    with VideoWriter(whole, Fraction(2)) as writer:
        for index in range(40):
            writer.write(np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8))
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with VideoReader(str(whole)) as reader:
        assert len(list(reader)) == 40
    assert not caplog.records
    with VideoReader(str(cut)) as reader:
        assert 0 < len(list(reader)) < 35
    [record] = caplog.records
    assert "says that it lasts 20.0 s: is it whole?" in record.getMessage()


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["a.mp4", "a_overlay.mp4"], "a_overlay.mp4"),
        (["A_Overlay.MP4", "a.mp4"], "A_Overlay.MP4"),
        (["link.mp4"], "link.mp4"),
        (["a.mp4", "a_legend.png"], "a_legend.png"),
        (["camera:0", "camera0_overlay.mp4"], "camera0_overlay.mp4"),
    ],
)
def test_no_input_is_written_over(
    names: list[str],
    lost: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vid").mkdir()
    Path("a_legend.png").touch()
    Path("vid/link_overlay.mp4").touch()
    Path("link.mp4").symlink_to("vid/link_overlay.mp4")
    output = "vid" if lost == "link.mp4" else "."
    words = [*names, "--classes", "sky", "--output", output, "--json"]
    assert main(["no bundle", *words]) == 2
    assert f"the input {lost} would be written over" in capsys.readouterr().err
    assert main(["no bundle", *words, "--no-overlay"]) == 2
    assert "written over" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clip.mpg", "00001.MTS", "a.3gp", "b.wmv", "camera:0"])
def test_what_camcorders_and_phones_write_is_a_video(name: str) -> None:
    assert is_video(name)
    assert not is_video(f"{name}.png")


def test_a_bad_video_does_not_stop_the_others(
    tiny_bundle: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    words = ["--classes", "sky, car", "--output", str(tmp_path / "out"), "--no-overlay"]
    names = [str(bad), str(video)]
    assert main([str(tiny_bundle), *names, *words, "--frames", "1", "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)["videos"]
    assert "cannot open the video" in first["error"]
    assert second["frames"] == 1
    assert "overlay" not in second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "0"], "--frames is 0"),
        (["same/bar.MP4"], "two videos are called bar"),
    ],
)
def test_what_does_not_go_with_videos_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "bar.mp4", *options, "--classes", "sky", "--json"]) == 2
    assert message in capsys.readouterr().err


TURNS: dict[tuple[int, ...], Callable[[ImageArray], ImageArray]] = {
    (1, 0, 0, 1): lambda picture: picture,
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),  # a phone held upright
    (-1, 0, 0, -1): lambda picture: np.rot90(picture, 2),
    (0, -1, 1, 0): lambda picture: np.rot90(picture, 1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda picture: picture.swapaxes(0, 1),
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}


def turned(video: Path, matrix: tuple[int, ...]) -> Path:
    """The same file with another matrix of its track, a movie's `tkhd`."""
    content = bytearray(video.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (one << 16 for one in matrix)
    assert struct.unpack_from(">9i", content, start)[0] == 1 << 16
    struct.pack_into(">9i", content, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = video.with_name("turned.mp4")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", TURNS)
def test_what_a_turned_phone_takes_stands_upright(video: Path, matrix: tuple[int, ...]) -> None:
    with VideoReader(str(video)) as reader:
        plain = list(reader)
    path = turned(video, matrix)
    with VideoReader(str(path)) as reader:
        for got, lying in zip(reader, plain, strict=True):
            np.testing.assert_array_equal(got, TURNS[matrix](lying))
            assert got.flags.c_contiguous
    with VideoReader(str(path)) as reader:
        for frame_, lying in zip(reader.nv12(), plain, strict=True):
            assert isinstance(frame_, Nv12Frame)
            off = frame_.rgb().astype(int) - TURNS[matrix](lying)
            assert np.abs(off).max() <= 3  # FFmpeg's tables are off by a level or two


def test_a_turn_by_half_a_right_angle_is_left_alone(video: Path) -> None:
    with VideoReader(str(turned(video, (1, 1, -1, 1)))) as reader:
        assert next(iter(reader)).shape == (48, 64, 3)


def test_a_turned_frame_of_odd_sides_keeps_the_pairs_of_its_chroma(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded = av.VideoFrame(65, 49, "yuv420p")
    decoded.colorspace = 1
    assert _encoding(decoded) is not None
    monkeypatch.setattr("escnet_runtime.video._turn", lambda _: _Turn(False, False, True))
    assert _encoding(decoded) is None


def read_times(path: Path) -> list[float]:
    """In seconds, of each frame."""
    with VideoReader(str(path)) as reader:
        reader.times = deque()
        frames = list(reader)
        times = [float(one) for one in reader.times if one is not None]
    assert len(frames) == len(times)
    return times


def test_an_overlay_has_the_pace_of_its_video(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames of a screen recording are not even, nor those of a camera that is not waited for."""
    path, times = tmp_path / "uneven.mp4", [0.0, 0.1, 2.1, 2.5]
    with VideoWriter(path, Fraction(10)) as writer:
        for index, time in enumerate(times):
            writer.write(frame(index), Fraction(time).limit_denominator(10) + 77)
    assert read_times(path) == pytest.approx(times)
    words = ["--classes", "sky, car", "--output", str(tmp_path / "out"), "--no-legend", "--json"]
    assert main([str(tiny_bundle), str(path), *words]) == 0
    [entry] = json.loads(capsys.readouterr().out)["videos"]
    assert read_times(Path(entry["overlay"])) == pytest.approx(times)


def test_a_clock_that_begins_anew_or_says_nothing_goes_on_at_the_rate(tmp_path: Path) -> None:
    path = tmp_path / "anew.mp4"
    said = [None, None, Fraction(5), Fraction(51, 10), Fraction(1), Fraction(1), Fraction(3), None]
    with VideoWriter(path, Fraction(10)) as writer:
        for index, time in enumerate(said):
            writer.write(frame(index), time)
    assert read_times(path) == pytest.approx([0, 0.1, 5, 5.1, 5.2, 5.3, 7.3, 7.4])
