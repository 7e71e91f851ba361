"""Videos, cameras and streams for ``escnet-segment``."""

import argparse
import importlib.util
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..atomic import atomic_file
from ..console import Console, printable
from ..errors import BackendError, EscNetError, ImageError, InputError
from ..frames import Nv12Frame
from ..images import IMAGE_SUFFIXES, ImageArray
from ..pictures import draw_overlay, label_counts, save_picture
from ..result import Segmentation
from ..segmenter import Segmenter
from ..video_source import is_live, source_stem, without_secrets
from ..vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..video import VideoWriter
    from ..video_legend import VideoOverlay

__all__ = [
    "VIDEO_SUFFIXES",
    "is_video",
    "path_key",
    "require_videos",
    "segment_video",
    "video_line",
]

_LOG = logging.getLogger(__name__)
#: Of files that FFmpeg reads and Pillow does not: containers, and those of camcorders and phones.
VIDEO_SUFFIXES: Final = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)
_SHOWN: Final = 3  # categories of a video in its line


def is_video(name: str) -> bool:
    """Whether an input is a camera, an address or, by its suffix, a video file.

    An address of an image is none: FFmpeg would make a video of one frame of it.
    """
    if is_live(name):
        return Path(name.partition("?")[0]).suffix.lower() not in IMAGE_SUFFIXES
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def require_videos(
    videos: Sequence[str], images: Iterable[Path], arguments: argparse.Namespace
) -> None:
    """Refuse now what would fail after minutes, or write over an input.

    Args:
        videos: files and cameras.
        images: the other inputs.
        arguments: of the command: ``output``, ``frames``, ``no_overlay``.

    Raises:
        BackendError: PyAV is not installed.
        InputError: an option does not go with videos, two have the same name, or what one gives
            has that of an input.
    """
    if importlib.util.find_spec("av") is None:
        raise BackendError(
            f"reading {_shown(videos[0])} needs PyAV, which is not installed: install "
            "escnet-runtime[video]"
        )
    if arguments.frames is not None and arguments.frames < 1:
        raise InputError(f"--frames is {arguments.frames}, expected at least 1")
    stems = Counter(source_stem(name).casefold() for name in videos)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise InputError(f"two videos are called {twice[0]}; give each an --output of its own")
    if arguments.no_overlay:
        return
    files = [Path(name) for name in videos if not is_live(name)]
    inputs = {path_key(path): path for path in (*images, *files)}
    for name in videos:
        for output in _outputs(name, arguments.output):
            if (lost := inputs.get(path_key(output))) is not None:
                raise InputError(
                    f"the input {lost} would be written over by what {_shown(name)} gives; name "
                    "another folder with --output"
                )


def path_key(path: Path) -> str:
    """What two paths have in common that are, or may be, the same file."""
    # Some file systems take names that differ in case for the same.
    return str(path.resolve()).casefold()


def segment_video(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    name: str,
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """Segment a video and write it under its colours; the entry of the result, also of a failure.

    Args:
        segmenter: what segments.
        vocabulary: the categories.
        name: a file, "camera:N" or an address.
        arguments: of the command: ``output``, ``frames``, ``no_overlay``, ``no_legend``,
            ``window``, ``shortlist``.
        console: shows the frames a second.
    """
    overlay, legend = _outputs(name, arguments.output)
    shown = _shown(name)
    try:
        place = None if arguments.no_overlay else overlay
        entry, end = _run(segmenter, vocabulary, name, place, arguments, console)
        if place is not None:
            save_picture(entry.pop("legend"), legend)
            entry |= {"overlay": str(overlay), "legend": str(legend)}
    except (EscNetError, OSError, MemoryError) as error:
        message = str(error) or "not enough memory"
        _LOG.error("%s", message if shown in message else f"{shown}: {message}")
        return {"path": shown, "error": message}
    if isinstance(end, SystemExit):
        raise end
    if end is not None:
        _LOG.warning("%s; what came before is kept", end)
        entry["ended_by"] = str(end)
    return entry


def video_line(entry: dict[str, Any]) -> str:
    """A line for people."""
    if "error" in entry:
        return printable(f"{entry['path']}: {entry['error']}")
    largest = list(entry["area"].items())[:_SHOWN]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in largest)
    return printable(
        f"{entry['path']}: {entry['frames']} frames of {entry['width']}×{entry['height']}, "
        f"{entry['frames_per_second']:.1f} frames a second; {shares}"
    )


def _run(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    name: str,
    overlay: Path | None,
    arguments: argparse.Namespace,
    console: Console,
) -> tuple[dict[str, Any], ImageError | SystemExit | None]:
    """The entry, and what has ended a live source in the middle: SIGTERM, a lost camera."""
    from ..video import VideoReader, VideoWriter
    from ..video_legend import VideoOverlay

    seen = _Seen(vocabulary)
    most: int | None = arguments.frames
    live = is_live(name)
    end: ImageError | SystemExit | None = None
    with ExitStack() as owned:
        reader = owned.enter_context(VideoReader(name))
        writer = drawn = None
        if overlay is not None:
            place = owned.enter_context(atomic_file(overlay))  # half a video is none
            writer = owned.enter_context(VideoWriter(place, reader.rate))
            if not arguments.no_legend:
                drawn = VideoOverlay(vocabulary.names, float(reader.rate), note=segmenter.note)
        total = most or reader.frames
        advance = owned.enter_context(console.progress(Path(_shown(name)).name, total))
        times: deque[Fraction | None] = deque()
        reader.times = times
        # A GPU converts colours itself.
        frames = iter(reader) if segmenter.device_pipeline is None else reader.nv12()
        if overlay is not None:
            frames = _of_one_size(frames, _shown(name))
        results = segmenter.stream(
            itertools.islice(frames, most),
            vocabulary,
            window=arguments.window,
            shortlist=arguments.shortlist,
        )
        try:
            with closing(results):
                for result in seen.counted(results):
                    _write(writer, drawn, result, times.popleft() if times else None)
                    advance(f"{seen.rate:.1f} frames a second")
        # A camera has no end but these. A file has its own: what is cut off is no result.
        except KeyboardInterrupt:
            if not live:
                raise
        except (ImageError, SystemExit) as error:
            if not live or seen.last is None:
                raise
            end = error
        if seen.last is None:
            raise InputError(f"{_shown(name)} has no frame")
        left_out = {"left_out": reader.left_out} if live else {}
    return {"path": _shown(name), **seen.entry(legend=overlay is not None), **left_out}, end


def _of_one_size(
    frames: Iterable[ImageArray | Nv12Frame], shown: str
) -> Iterator[ImageArray | Nv12Frame]:
    """Pass frames on as long as one video may hold them; a stream may go over to another size."""
    first: tuple[int, int] | None = None
    for number, frame in enumerate(frames, 1):
        size = frame.size if isinstance(frame, Nv12Frame) else frame.shape[:2]
        first = first or size
        if size != first:
            raise ImageError(
                f"frame {number} of {shown} is {size[1]}×{size[0]}, those before are "
                f"{first[1]}×{first[0]}; an overlay has one size: cut the video there, or use "
                "--no-overlay"
            )
        yield frame


def _write(
    writer: "VideoWriter | None",
    drawn: "VideoOverlay | None",
    result: Segmentation,
    time: Fraction | None,
) -> None:
    if writer is None:
        return
    if drawn is None:
        writer.write(np.asarray(result.overlay(legend=False)), time)
    else:
        writer.write(drawn.draw(result), time)


class _Seen:
    """Totals of the frames so far."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names = vocabulary.names
        self._pixels = np.zeros(len(vocabulary.names), np.int64)
        self._start = time.perf_counter()
        self._seconds = 0.0
        self._frames = 0
        self._kept = 0
        self.last: Segmentation | None = None

    def counted(self, results: Iterator[Segmentation]) -> Iterator[Segmentation]:
        """Pass results on and count them."""
        for result in results:
            self._frames += 1
            self._kept = max(self._kept, result.kept or 0)
            self._seconds = time.perf_counter() - self._start
            self._pixels += label_counts(result.labels, len(self._names))
            self.last = result
            yield result

    @property
    def rate(self) -> float:
        """Frames a second so far, reading and writing included."""
        return self._frames / self._seconds if self._seconds else 0.0

    def entry(self, *, legend: bool) -> dict[str, Any]:
        """The result's entry; with ``legend``, that key holds the legend as a picture."""
        assert self.last is not None
        height, width = self.last.labels.shape
        order = np.argsort(-self._pixels, kind="stable")
        share = self._pixels / self._pixels.sum()
        area: dict[str, float] = {}
        for index in order[self._pixels[order] > 0]:
            name = self._names[index]
            area[name] = area.get(name, 0.0) + float(share[index])
        found = {
            "width": width,
            "height": height,
            "frames": self._frames,
            "frames_per_second": round(self.rate, 3),
            "kept": self._kept,
            "area": area,
        }
        if legend:
            found["legend"] = self._legend()
        return found

    def _legend(self) -> Any:
        """The last frame beside the categories of the whole video, the largest first."""
        assert self.last is not None
        return draw_overlay(
            self.last.image,
            self.last.labels,
            self._names,
            note=self.last.note,
            fractions=self._pixels / self._pixels.sum(),
        )


def _outputs(name: str, folder: Path) -> tuple[Path, Path]:
    """Where the overlay and the legend of a video go."""
    stem = source_stem(name)
    return folder / f"{stem}_overlay.mp4", folder / f"{stem}_legend.png"


def _shown(name: str) -> str:
    """A source for people and files: passwords of addresses are nobody else's."""
    return without_secrets(name, name)
