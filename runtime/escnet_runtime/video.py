"""Videos and cameras as frames, and frames as a video, through PyAV (``escnet-runtime[video]``)."""

import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from .errors import ImageError, InputError
from .frames import Nv12Frame
from .images import ImageArray
from .nv12 import YuvEncoding

__all__ = ["VideoReader", "VideoWriter"]

_CAMERA: Final = re.compile(r"camera:(\d{1,3})")
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
#: The first that the installed FFmpeg has. All of them take yuv420p and go into .mp4.
_CODECS: Final = ("libx264", "libopenh264", "mpeg4")


class VideoReader:
    """The frames of a video file, or of a camera until somebody stops asking.

    Args:
        source: a file, or "camera:N" for the N-th camera (Linux and macOS).

    Raises:
        ImageError: it cannot be opened, or has no video.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        camera = _CAMERA.fullmatch(source)
        try:
            self._container: InputContainer = (
                _open_camera(int(camera[1])) if camera else av.open(source)
            )
        except (OSError, ValueError, av.FFmpegError) as error:
            what = "camera" if camera else "video"
            raise ImageError(f"cannot open the {what} {source}: {_reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise ImageError(f"{source} has no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    @property
    def rate(self) -> Fraction:
        """Frames a second."""
        return self._stream.average_rate or _USUAL_RATE

    @property
    def frames(self) -> int | None:
        """How many there are, as far as the file says."""
        return self._stream.frames or None

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
            yield from self._container.decode(self._stream)
        except av.FFmpegError as error:
            raise ImageError(f"cannot read on in {self.source}: {_reason(error)}") from error

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class VideoWriter:
    """A video file, written frame by frame; the first one gives its size.

    Args:
        path: the file; its suffix decides the container, such as ".mp4".
        rate: frames a second.

    Raises:
        InputError: it cannot be written, or no codec for it is here.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path, self._rate = path, rate
        if not path.parent.is_dir():  # found out only with the first frame otherwise
            raise InputError(f"cannot write the video {path}: there is no folder {path.parent}")
        try:
            self._container: OutputContainer = av.open(str(path), "w")
        except (OSError, ValueError, av.FFmpegError) as error:
            raise InputError(f"cannot write the video {path}: {_reason(error)}") from error
        self._stream: VideoStream | None = None

    def write(self, frame: ImageArray) -> None:
        """Add a frame, uint8 [H,W,3]; an odd last row or column is left out, as codecs need it.

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
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begun(self, height: int, width: int) -> VideoStream:
        for codec in _CODECS:
            if codec in av.codecs_available:
                stream: VideoStream = self._container.add_stream(codec, rate=self._rate)
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
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
    full = frame.format.name == "yuvj420p" or int(frame.color_range) == _FULL
    return YuvEncoding(matrix=matrix, range="full" if full else "limited")


def _rgb_frame(frame: av.VideoFrame) -> ImageArray:
    return np.ascontiguousarray(frame.to_ndarray(format="rgb24"))


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
        pairs = chroma[0][:half, : 2 * wide]
    else:
        pairs = np.stack([plane[:half, :wide] for plane in chroma], axis=2)
    return Nv12Frame(luma=luma[: frame.height, : frame.width], chroma=pairs, encoding=encoding)


def _open_camera(number: int) -> InputContainer:
    if sys.platform == "linux":
        return av.open(f"/dev/video{number}", format="v4l2")
    if sys.platform == "darwin":
        return av.open(str(number), format="avfoundation", options={"framerate": "30"})
    raise ValueError(f"cameras are not supported on {sys.platform}; give a video file")


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
