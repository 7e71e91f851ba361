"""``escnet-segment``: label maps and overlays of images, for any list of categories."""

import argparse
import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..console import Console, command_parser, printable, run_command
from ..errors import EscNetError, ImageError, InputError
from ..images import find_images
from ..memory import peak_memory
from ..pictures import (
    areas,
    is_own_picture,
    label_png_origin,
    read_label_png,
    save_label_png,
    save_picture,
)
from ..result import Segmentation
from ..segmenter import Segmenter
from ..shortlist import parse_shortlist
from ..vocabulary import Vocabulary, parse_classes, read_classes_file
from .options import add_backend_option, add_chunk_option
from .segment_video import is_video, path_key, require_videos, segment_video, video_line

__all__ = ["main"]

_LOG = logging.getLogger(__name__)
_SHOWN = 3  # categories of an image in the table
#: Behind the origin of a label map with an overlay beside it; another's may lie there otherwise.
_WITH_OVERLAY = "+overlay"
_EPILOG = """\
--classes: commas separate categories ("cat, sofa"). With a semicolon or a line break in the text,
those do, and commas separate synonyms, with or without a space ("cat; sofa, couch").
--classes-file: a JSON list, or one category a line; a comma with a space behind it separates
synonyms ("sofa, couch"), any other one belongs to the name ("1,000 yen note").

Each image gives STEM_labels.png, a palette PNG (16-bit grey above 256 categories) of indices into
the categories, and STEM_overlay.png, the image under colours with a legend. An image that cannot be
read does not stop the others; the exit code is then 1.

The same command with --resume goes on where one was interrupted: images whose pictures are there,
of the same bundle, categories and options, are left as they are, and listed with no milliseconds.
Images that have changed or failed are segmented, and so is all of a video.

A video file, a camera ("camera:0") or a stream ("rtsp://...", also http and others) gives
STEM_overlay.mp4, every frame under its colours beside a legend (categories keep their line; those
not in the picture are pale), and STEM_legend.png, the categories of the whole video; it needs
escnet-runtime[video]. Ctrl-C, SIGTERM and a lost connection end a camera or a stream and keep what
is written; of a file that is cut short nothing is kept.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _segment, argv)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the pictures of an image go."""

    labels: Path
    overlay: Path


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-segment",
        "Segment images with a bundle, for any list of categories.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    add(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image file, folder of images, glob pattern, video file, camera:N, or rtsp://...",
    )
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--classes", metavar="TEXT", help='categories, as "cat, sofa"')
    classes.add_argument("--classes-file", metavar="FILE", type=Path, help="file of categories")
    add("--output", metavar="DIR", type=Path, default=Path(), help="folder of the results (here)")
    add(
        "--window",
        choices=("none", "sliding"),
        default="none",
        help="sliding: four overlapping windows and the whole image; five times the work",
    )
    add_backend_option(parser)
    add_chunk_option(parser)
    add(
        "--shortlist",
        metavar="K|auto",
        type=parse_shortlist,
        help="give the model only the K categories that come nearest to winning a pixel by their "
        "correlation, or, with auto, all that come near: faster for many categories",
    )
    add(
        "--template",
        metavar="TEXT",
        action="append",
        help='text around a category, such as "a photo of a {}"; several are averaged',
    )
    add("--frames", metavar="N", type=int, help="stop a video or a camera after so many frames")
    add(
        "--resume",
        action="store_true",
        help="leave images alone that an earlier run with the same bundle, categories and options "
        "has segmented into the same folder",
    )
    add("--no-overlay", action="store_true", help="write the label maps alone")
    add("--no-legend", action="store_true", help="write videos at their own size, without legend")
    add(
        "--no-cache",
        action="store_true",
        help="neither read nor write the cache (of embeddings and graphs)",
    )
    return parser


def _segment(arguments: argparse.Namespace, console: Console) -> tuple[int, dict[str, Any]]:
    names = _categories(arguments)
    videos = [name for name in arguments.images if is_video(name)]
    stills = [name for name in arguments.images if not is_video(name)]
    images = _find(stills) if stills else []
    if videos:
        require_videos(videos, images, arguments)
    cache = None if arguments.no_cache else "default"
    with Segmenter(
        arguments.bundle, arguments.backend, chunk=arguments.chunk, cache=cache
    ) as segmenter:
        _require_writable(arguments.output)
        targets = _targets(images, arguments.output)
        vocabulary = segmenter.vocabulary(names, templates=arguments.template)
        common = _common_origin(segmenter, vocabulary, arguments)
        entries = []
        with console.progress("segmenting", len(images) if images else None) as advance:
            for path, target in zip(images, targets, strict=True):
                origin = _origin(common, path)
                entry = _earlier(path, target, origin, arguments) if arguments.resume else None
                entries.append(
                    entry or _one(segmenter, vocabulary, path, target, origin, arguments)
                )
                advance()
        if arguments.resume:
            kept = sum(entry.get("milliseconds", 0) is None for entry in entries)
            _LOG.info("left %d of %d images as an earlier run has them", kept, len(entries))
        shown = [segment_video(segmenter, vocabulary, name, arguments, console) for name in videos]
        document: dict[str, Any] = {
            "backend": segmenter.backend,
            "chunk": segmenter.chunk,
            "chunk_source": segmenter.chunk_source,
            "categories": len(vocabulary.names),
            "shortlist": arguments.shortlist,
            "peak_memory_bytes": peak_memory(),
            "images": entries,
        }
        if videos:
            document["videos"] = shown
        if segmenter.note:
            document["note"] = segmenter.note
    _show(document, arguments.output, console)
    return int(any("error" in entry for entry in (*entries, *document.get("videos", ())))), document


def _categories(arguments: argparse.Namespace) -> list[str]:
    if arguments.classes_file is not None:
        return read_classes_file(arguments.classes_file)
    return parse_classes(arguments.classes)


def _find(inputs: Sequence[str]) -> list[Path]:
    """The images; label maps and overlays of earlier runs only where they are named outright."""
    try:
        images = find_images(inputs)
    except OSError as error:
        raise InputError(f"cannot look for images in {error.filename}: {error.strerror}") from error
    named = {Path(name) for name in inputs}
    wanted = [path for path in images if path in named or not is_own_picture(path)]
    if len(wanted) < len(images):
        skipped = len(images) - len(wanted)
        _LOG.info("left out %d pictures that escnet-segment has written before", skipped)
    if not wanted:
        raise InputError(
            f"all {len(images)} images are pictures that escnet-segment has written; name photos, "
            "or a picture outright"
        )
    return wanted


def _require_writable(folder: Path) -> None:
    """Create the folder; find out now, not after the first image, that it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise InputError(f"the output {folder} is a file; expected a folder") from None
    except OSError as error:
        raise InputError(
            f"cannot write in the output folder {folder}: {error.strerror}; name another one with "
            "--output"
        ) from error


def _targets(images: Iterable[Path], folder: Path) -> list[_Target]:
    """Names for each image's pictures: no two alike, and none that of an image to be read."""
    images = list(images)
    taken = {path_key(path) for path in images}
    numbers: dict[str, int] = {}  # of a stem, the first one that may be free
    targets = []
    for image in images:
        number = numbers.get(image.stem, 1)
        while True:
            stem = image.stem if number == 1 else f"{image.stem}_{number}"
            target = _Target(folder / f"{stem}_labels.png", folder / f"{stem}_overlay.png")
            keys = {path_key(target.labels), path_key(target.overlay)}
            number += 1
            if not keys & taken:
                break
        numbers[image.stem] = number
        taken |= keys
        targets.append(target)
    return targets


def _common_origin(
    segmenter: Segmenter, vocabulary: Vocabulary, arguments: argparse.Namespace
) -> list[object]:
    """What decides the labels of any image: two runs that have it equal give the same pictures.

    Not the backend and the chunk, which change near-ties at most.
    """
    return [
        hashlib.sha256(segmenter.bundle.manifest.to_json().encode()).hexdigest(),
        vocabulary.names,
        vocabulary.templates,
        arguments.window,
        arguments.shortlist,
    ]


def _origin(common: list[object], path: Path) -> str | None:
    """A key of what an image's pictures are made from; None if the image cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    whole = [*common, path.name, status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _earlier(
    path: Path, target: _Target, origin: str | None, arguments: argparse.Namespace
) -> dict[str, Any] | None:
    """The entry of an image that an earlier run has segmented; None if it is still to be done."""
    overlay = None if arguments.no_overlay else target.overlay
    if origin is None or (overlay is not None and not overlay.is_file()):
        return None
    found = label_png_origin(target.labels)
    if found != origin + _WITH_OVERLAY and (overlay is not None or found != origin):
        return None
    try:
        labels, names = read_label_png(target.labels)
    except ImageError:
        return None
    return _entry(path, target, overlay, labels.shape, areas(labels, names or []))


def _one(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    path: Path,
    target: _Target,
    origin: str | None,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Segment an image and write its pictures; the entry of the result, also of a failure."""
    start = time.perf_counter()
    try:
        result = segmenter(path, vocabulary, window=arguments.window, shortlist=arguments.shortlist)
        milliseconds = 1000 * (time.perf_counter() - start)
        overlay = _write(result, target, origin, arguments.no_overlay)
    except (EscNetError, OSError, MemoryError) as error:
        message = str(error) or "not enough memory"
        _LOG.error("%s", message if str(path) in message else f"{path}: {message}")
        return {"path": str(path), "error": message}
    entry = _entry(path, target, overlay, result.labels.shape, result.area())
    return {**entry, "milliseconds": round(milliseconds, 3), "kept": result.kept}


def _entry(
    path: Path,
    target: _Target,
    overlay: Path | None,
    shape: tuple[int, ...],
    area: dict[str, float],
) -> dict[str, Any]:
    """The result's entry of an image whose pictures exist; an earlier run's time is not known."""
    height, width = shape
    return {
        "path": str(path),
        "width": width,
        "height": height,
        "labels": str(target.labels),
        "overlay": overlay and str(overlay),
        "milliseconds": None,
        "kept": None,
        "area": area,
    }


def _write(
    result: Segmentation, target: _Target, origin: str | None, no_overlay: bool
) -> Path | None:
    """Both pictures or none; returns the overlay's path.

    The label map, which says what both are of, goes first and comes last: where it stands, the
    overlay beside it is of the same run, also if one was killed between the two.
    """
    overlay = None if no_overlay else target.overlay
    if overlay is not None:
        picture = result.overlay()
        target.labels.resolve().unlink(missing_ok=True)
        save_picture(picture, overlay)
        origin = origin and origin + _WITH_OVERLAY
    try:
        save_label_png(target.labels, result.labels, result.names, origin=origin)
    except BaseException:
        if overlay is not None:
            overlay.unlink(missing_ok=True)
        raise
    return overlay


def _show(document: dict[str, Any], output: Path, console: Console) -> None:
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("largest categories", overflow="fold")
    table.add_column("pictures", overflow="fold")
    table.add_column("ms", justify="right")
    for entry in document["images"]:
        path = Text(printable(entry["path"]))
        if "error" in entry:
            table.add_row(path, Text(f"failed: {printable(entry['error'])}", "red"), "", "")
            continue
        largest = [
            f"{printable(name)} {share:.1%}" for name, share in list(entry["area"].items())[:_SHOWN]
        ]
        pictures = [
            printable(Path(entry[kind]).name) for kind in ("labels", "overlay") if entry[kind]
        ]
        milliseconds = "" if entry["milliseconds"] is None else f"{entry['milliseconds']:.0f}"
        table.add_row(path, Text(", ".join(largest)), Text("\n".join(pictures)), milliseconds)
    if document["images"]:
        console.print(table)
    for entry in document.get("videos", ()):
        console.print(Text(video_line(entry), "red" if "error" in entry else ""))
    if not all("error" in entry for entry in (*document["images"], *document.get("videos", ()))):
        console.print(Text(printable(f"The pictures are in {output.resolve()}")))
    if "note" in document:
        console.print(Text(f"Note: {document['note']}.", "yellow"))


if __name__ == "__main__":
    sys.exit(main())
