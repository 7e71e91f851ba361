"""Videos and cameras as frames, and frames as a video, through PyAV (``escnet-runtime[video]``)."""

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .closing import Closing
from .errors import ImageError, InputError
from .frames import Nv12Frame
from .images import ImageArray
from .newest import Newest
from .nv12 import YuvEncoding
from .video_source import camera_number, does_not_wait, is_address, is_live, without_secrets

__all__ = ["VideoReader", "VideoWriter"]

_LOG: Final = logging.getLogger("escnet_runtime")
#: Formats whose planes are NV12's, or NV12's with chroma in two planes.
_NEARLY_NV12: Final = frozenset({"nv12", "yuv420p", "yuvj420p"})
#: FFmpeg's AVColorSpace, those that YuvEncoding has. 2 is "not said".
_MATRICES: Final[dict[int, Literal["bt601", "bt709"]]] = {
    1: "bt709",
    2: "bt601",
    5: "bt601",
    6: "bt601",
}
_FULL: Final = 2  # of AVColorRange
_USUAL_RATE: Final = Fraction(30)  # frames a second, where a source does not say
#: Until an address answers, and until its next frame: what is silent for longer is gone.
_PATIENCE: Final = (10.0, 30.0)
#: The first that the installed FFmpeg has. All of them take yuv420p and go into .mp4.
_CODECS: Final = ("libx264", "libopenh264", "mpeg4")
#: What a file may lack at its end before that is worth a warning: sound is often a little longer.
_MISSING_SECONDS: Final = Fraction(2)
_MISSING_SHARE: Final = Fraction(1, 100)
#: Of what is written: 24, 25, 30, 60 and 30000/1001 frames a second last a whole number of it, and
#: MPEG-4 takes none much shorter.
_TICK: Final = Fraction(1, 60000)


class VideoReader(Closing):
    """The frames of a video file, or of a camera or a stream until somebody stops asking.

    Frames stand upright: a phone that is turned writes how, in place of turning its pictures.

    Of a camera, and of a stream but by http, each frame is the newest there is: what comes while
    nobody asks is left out, so that nothing lags behind, however slow the reader.

    Args:
        source: a file, "camera:N" for the N-th camera (Linux and macOS), or an address in the
            network, such as "rtsp://user:password@camera/stream". An address that does not answer
            within 10 s, or sends no frame for 30, is an error.

    Attributes:
        times: a caller that wants to know when frames are shown sets this to an empty deque. For
            each frame that is read, its time in seconds is then appended (None where the source
            does not say); the caller takes them out.

    Raises:
        ImageError: it cannot be opened, or has no video.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._container: InputContainer = _opened(source)
        except (OSError, ValueError, av.FFmpegError) as error:
            what = "video" if camera_number(source) is None else "camera"
            hint = "; is it a whole video?" if isinstance(error, av.InvalidDataError) else ""
            message = f"cannot open the {what} {source}: {_reason(error)}{hint}"
            raise ImageError(without_secrets(message, source)) from error
        if not self._container.streams.video:
            self._container.close()
            raise ImageError(without_secrets(f"{source} has no video in it", source))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.times: deque[Fraction | None] | None = None
        self._newest: Newest[av.VideoFrame] | None = None

    @property
    def rate(self) -> Fraction:
        """Frames a second, on average."""
        return self._stream.average_rate or _USUAL_RATE

    @property
    def frames(self) -> int | None:
        """How many there are, as far as the file says."""
        return self._stream.frames or None

    @property
    def left_out(self) -> int:
        """Frames so far that came while nobody asked for one."""
        return 0 if self._newest is None else self._newest.left_out

    def __iter__(self) -> Iterator[ImageArray]:
        """Frames uint8 [H,W,3], RGB, in order.

        Raises:
            ImageError: the file is damaged from here on.
        """
        return map(_rgb_frame, self._decoded())

    def nv12(self) -> Iterator[ImageArray | Nv12Frame]:
        """Frames in order, as NV12 where the video has them so or nearly so, else as RGB.

        That is 4:2:0 with 8 bits in BT.601 or BT.709, as most videos are. A Segmenter on a GPU
        converts their colours there, and half as much is uploaded.

        Raises:
            ImageError: the file is damaged from here on.
        """
        for frame in self._decoded():
            encoding = _encoding(frame)
            yield _rgb_frame(frame) if encoding is None else _nv12_frame(frame, encoding)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        try:
            frames: Iterator[av.VideoFrame] = self._container.decode(self._stream)
            if does_not_wait(self.source):
                frames = self._newest = Newest(frames)
            last: Fraction | None = None
            for frame in frames:
                last = _time(frame)
                if self.times is not None:
                    self.times.append(last)
                yield frame
            self._say_if_cut_off(last)
        except av.FFmpegError as error:
            message = f"cannot read on in {self.source}: {_reason(error)}"
            raise ImageError(without_secrets(message, self.source)) from error

    def _say_if_cut_off(self, last: Fraction | None) -> None:
        """Warn where a file ends long before the time that its head tells.

        FFmpeg takes the end of a Matroska file that is cut off for the end of the video.
        """
        told = self._container.duration
        if is_live(self.source) or last is None or not told:
            return
        begin = Fraction(self._container.start_time or 0, av.time_base)
        whole = Fraction(told, av.time_base)
        # The last frame is shown for a while, which a slide show has longest.
        missing = begin + whole - last - 2 / self.rate
        if missing > _MISSING_SECONDS and missing > _MISSING_SHARE * whole:
            _LOG.warning(
                "%s has no frame behind %.1f s, and says that it lasts %.1f s: is it whole?",
                self.source,
                last - begin,
                whole,
            )

    def close(self) -> None:
        """Let go of the file or the camera."""
        # FFmpeg does not survive that what it reads from is closed.
        if self._newest is not None and not self._newest.close(sum(_PATIENCE)):
            _LOG.warning("%s gives no frame; it is left open", self.source)
            return
        self._container.close()


class VideoWriter(Closing):
    """A video file, written frame by frame; the first one gives its size.

    Args:
        path: the file; its suffix decides the container, such as ".mp4".
        rate: frames a second, where :meth:`write` is not told when one is shown.

    Raises:
        InputError: it cannot be written, or no codec for it is here.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path, self._rate = path, rate
        if not path.parent.is_dir():  # found out only with the first frame otherwise
            raise InputError(f"cannot write the video {path}: there is no folder {path.parent}")
        try:
            self._container: OutputContainer = av.open(os.path.abspath(path), "w")
        except (OSError, ValueError, av.FFmpegError) as error:
            raise InputError(f"cannot write the video {path}: {_reason(error)}") from error
        self._stream: VideoStream | None = None
        self._tick = -1  # of the last frame
        self._start = Fraction(0)  # of the video, by the clock of the frames

    def write(self, frame: ImageArray, time: Fraction | None = None) -> None:
        """Add a frame, uint8 [H,W,3]; an odd last row or column is left out, as codecs need it.

        Args:
            frame: the pixels.
            time: when it is shown, in seconds by any clock; None, or a time that is not later than
                the frame before, stands for the next one at ``rate``. So a camera whose frames are
                not all segmented, and a video without a fixed rate, keep their pace.

        Raises:
            InputError: its size is not that of the first.
        """
        height, width = (side - side % 2 for side in frame.shape[:2])
        if not height or not width:
            raise InputError(
                f"got a frame of {frame.shape[1]}×{frame.shape[0]} pixels; expected sides of at "
                "least 2"
            )
        if self._stream is None:
            self._stream = self._begun(height, width)
        if (self._stream.height, self._stream.width) != (height, width):
            raise InputError(
                f"got a frame of {width}×{height} pixels for a video of "
                f"{self._stream.width}×{self._stream.height}"
            )
        even = np.ascontiguousarray(frame[:height, :width])
        picture = av.VideoFrame.from_ndarray(even, format="rgb24")
        self._tick = self._next_tick(time)
        picture.pts, picture.time_base = self._tick, _TICK
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def _next_tick(self, time: Fraction | None) -> int:
        following = 0 if self._tick < 0 else self._tick + max(1, round(1 / (self._rate * _TICK)))
        if time is None:
            return following
        tick = round((time - self._start) / _TICK)
        if self._tick < 0 or tick <= self._tick:  # a clock that begins, or begins anew
            self._start, tick = time - following * _TICK, following
        return tick

    def _begun(self, height: int, width: int) -> VideoStream:
        for codec in _CODECS:
            if codec in av.codecs_available:
                stream: VideoStream = self._container.add_stream(codec, rate=self._rate)
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                stream.codec_context.time_base = _TICK
                return stream
        raise InputError(
            f"cannot write {self._path}: the FFmpeg here has none of {', '.join(_CODECS)}"
        )


def _encoding(frame: av.VideoFrame) -> YuvEncoding | None:
    """What a frame's numbers stand for, if they are those of NV12 in another order; else None.

    A frame that does not say its matrix is taken for BT.601, as FFmpeg does.
    """
    matrix = _MATRICES.get(int(frame.colorspace))
    if frame.format.name not in _NEARLY_NV12 or matrix is None:
        return None
    if (frame.height % 2 or frame.width % 2) and _turn(frame) != _UPRIGHT:
        return None  # turned, its pairs of pixels would begin in the middle of a chroma sample
    full = frame.format.name == "yuvj420p" or int(frame.color_range) == _FULL
    return YuvEncoding(matrix=matrix, range="full" if full else "limited")


def _time(frame: av.VideoFrame) -> Fraction | None:
    """When a frame is shown, in seconds."""
    return None if frame.pts is None or not frame.time_base else frame.pts * frame.time_base


class _Turn(NamedTuple):
    """How a picture is brought upright: rows become columns, then rows or columns change order."""

    transposed: bool
    rows_reversed: bool
    columns_reversed: bool

    def of(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A view of a plane [H,W] or [H,W,C]."""
        plane = plane.swapaxes(0, 1) if self.transposed else plane
        return plane[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]


_UPRIGHT: Final = _Turn(False, False, False)


def _turn(frame: av.VideoFrame) -> _Turn:
    """The turn by a frame's display matrix (FFmpeg's libavutil/display.h), as phones write it.

    A pixel (x, y) goes to (a x + c y, b x + d y), and the picture is moved to where it begins at
    (0, 0). A picture that is turned by no multiple of 90 degrees stays as it is.
    """
    data: Any = frame.side_data  # PyAV's types know motion vectors alone
    found = data.get("DISPLAYMATRIX")
    if found is None:
        return _UPRIGHT
    (a, b), (c, d) = np.frombuffer(found, np.int32).reshape(3, 3)[:2, :2].tolist()
    if not a and not d and b and c:
        return _Turn(True, b < 0, c < 0)
    if a and d and not b and not c:
        return _Turn(False, d < 0, a < 0)
    return _UPRIGHT


def _rgb_frame(frame: av.VideoFrame) -> ImageArray:
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(_turn(frame).of(pixels))


def _nv12_frame(frame: av.VideoFrame, encoding: YuvEncoding) -> Nv12Frame:
    """The planes: luma as it is (the array keeps the frame), chroma interleaved if it is not.

    FFmpeg's own conversion would change the range of full-range video.
    """
    luma, *chroma = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        for plane in frame.planes
    )
    half, wide = -(-frame.height // 2), -(-frame.width // 2)
    if len(chroma) == 1:
        pairs = chroma[0][:half, : 2 * wide].reshape(half, wide, 2)
    else:
        pairs = np.stack([plane[:half, :wide] for plane in chroma], axis=2)
    turn = _turn(frame)
    return Nv12Frame(
        luma=turn.of(luma[: frame.height, : frame.width]), chroma=turn.of(pairs), encoding=encoding
    )


def _opened(source: str) -> InputContainer:
    number = camera_number(source)
    if number is not None:
        return _open_camera(number)
    if not is_address(source):
        # A name with a colon is a protocol to FFmpeg: "12:30.mp4", or "tcp:" and a machine.
        return av.open(os.path.abspath(source))
    # Over UDP, RTSP's default, a busy network tears pictures.
    options = {"rtsp_transport": "tcp"} if source.lower().startswith("rtsp") else {}
    return av.open(source, timeout=_PATIENCE, options=options)


def _open_camera(number: int) -> InputContainer:
    if sys.platform == "linux":
        return av.open(f"/dev/video{number}", format="v4l2")
    if sys.platform == "darwin":
        return av.open(str(number), format="avfoundation", options={"framerate": "30"})
    raise ValueError(f"cameras are not supported on {sys.platform}; give a video file")


def _reason(error: Exception) -> str:
    """In words: FFmpeg's errors have a number and the path as well."""
    words = getattr(error, "strerror", None) or str(error)
    return words.strip() or type(error).__name__
