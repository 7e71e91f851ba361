"""Videos and cameras as frames, and frames as a video, through PyAV (``escnet-runtime[video]``)."""

import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from .errors import ImageError, InputError
from .images import ImageArray

__all__ = ["VideoReader", "VideoWriter"]

_CAMERA: Final = re.compile(r"camera:(\d{1,3})")
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
        try:
            for frame in self._container.decode(self._stream):
                yield np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
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


def _open_camera(number: int) -> InputContainer:
    if sys.platform == "linux":
        return av.open(f"/dev/video{number}", format="v4l2")
    if sys.platform == "darwin":
        return av.open(str(number), format="avfoundation", options={"framerate": "30"})
    raise ValueError(f"cameras are not supported on {sys.platform}; give a video file")


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
