"""What a bundle takes on a device: memory, seconds an image, and seconds to the first label map.

Every measurement runs in a fresh process without PyTorch, so that peak memory and cold start are
its own. For each number of categories there are two processes. The first starts with an empty cache
(of text embeddings and of rewritten graphs) and segments one image. The second starts with the
cache that the first has filled, segments that image and then times ``repeats`` more. Files may be
in the system's page cache: "cold" is the process, not the disk.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from escnet_runtime import BackendError, EscNetError, InputError, Segmenter
from escnet_runtime.bundle import Bundle
from escnet_runtime.images import ImageArray, load_image
from escnet_runtime.memory import peak_memory

from .stages import by_kind

__all__ = ["METHOD", "FootprintRow", "Startup", "generated_names", "measure_footprint", "run_child"]

METHOD: Final = (
    "each number of categories in two fresh processes, with an empty and with a filled cache of "
    "text embeddings and of graphs as the backend's library has rewritten them; times are wall "
    "clock; image_seconds is the median of the images after the first; the system's page cache is "
    "as it was"
)

# The measured process. Nothing but the runtime is imported before the clock has been read.
#: Without the folder that it is started in on its path: what Python 3.11 has the option -P for.
_CHILD: Final = """
import sys, time
sys.path[:] = filter(None, sys.path)
started = time.monotonic()
import escnet_runtime
imported = time.monotonic()
from escnet_bench.footprint import run_child
run_child(started, imported)
"""
_MADE_UP: Final = (480, 640)  # height and width of the made-up image


@dataclass(frozen=True, kw_only=True, slots=True)
class Startup:
    """Seconds from the start of a process to its first label map.

    ``interpreter`` starts Python, ``imports`` imports the runtime, ``open`` opens the bundle and
    imports the backend's library, ``vocabulary`` embeds the categories or reads them from the
    cache, ``image`` reads and segments the first image, which also loads the graphs. ``total`` is
    their sum.

    ``peak_memory_bytes`` is the peak of resident memory up to then, which includes the text encoder
    if the cache was empty; None if not known.
    """

    interpreter: float
    imports: float
    open: float
    vocabulary: float
    image: float
    total: float
    peak_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FootprintRow:
    """One number of categories.

    Attributes:
        categories: number of names given; ``distinct_categories`` of them differ and are computed.
        chunk: categories at a time.
        backend: library, version and device.
        image: name of the file, or "made up", and its size in pixels.
        image_seconds: median over the images after the first; ``image_seconds_each`` has them all.
        prompt_share: the prompt generator's share of an image's time, 0 to 1.
        peak_memory_bytes: peak of resident memory of the process with a filled cache, over all its
            images; None if not known.
        filled_cache, empty_cache: times up to the first label map.
        stages: mean seconds an image of each stage, summed over blocks and chunks; "other" is what
            no stage covers.
    """

    categories: int
    distinct_categories: int
    chunk: int
    backend: str
    image: str
    image_seconds: float
    image_seconds_each: tuple[float, ...]
    prompt_share: float
    peak_memory_bytes: int | None
    filled_cache: Startup
    empty_cache: Startup
    stages: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """The order for a measured process; ``spawned`` is its start by ``time.monotonic``."""

    bundle: str
    image: str | None
    names: list[str]
    backend: str
    chunk: int | None
    cache: str
    answer: str
    repeats: int = 0
    spawned: float = 0.0


def generated_names(count: int) -> list[str]:
    """Distinct names for ``count`` categories."""
    return [f"category {index:04d}" for index in range(1, count + 1)]


def measure_footprint(
    bundle: Path,
    categories: Sequence[int],
    *,
    image: Path | None = None,
    names: Sequence[str] | None = None,
    repeats: int = 3,
    backend: str = "auto",
    chunk: int | None = None,
    step: Callable[[str], object] | None = None,
) -> list[FootprintRow]:
    """Measure a bundle for each number of categories.

    Args:
        bundle: the bundle's folder.
        categories: numbers of categories, at least 1.
        image: the image to segment; a made-up one by default.
        names: category names, of which the first ones are used; generated by default.
        repeats: images that are timed, after the first.
        backend: the backend that runs the graphs.
        chunk: categories at a time, rounded up to whole groups; by default what
            :class:`Segmenter` chooses.
        step: called with a few words before each of the two processes of a number of categories.

    Raises:
        InputError: a number is below 1, there are fewer names than asked for, or bundle or image
            cannot be read.
        BackendError: the backend is not installed, or a measured process ended without an answer.
    """
    _check(categories, names, repeats)
    Bundle.open(bundle)
    if image is not None:
        load_image(image)
    rows = []
    for n in categories:
        with tempfile.TemporaryDirectory() as folder:
            order = _Order(
                bundle=str(bundle),
                image=None if image is None else str(image),
                names=generated_names(n) if names is None else list(names[:n]),
                backend=backend,
                chunk=chunk,
                cache=folder,
                answer=str(Path(folder, "answer.json")),
            )
            answers = []
            for cache, images in (("empty", 0), ("filled", repeats)):
                if step:
                    step(f"{n} categories, {cache} cache")
                answers.append(_run(order, images))
        rows.append(_row(n, *answers))
    return rows


def _check(categories: Sequence[int], names: Sequence[str] | None, repeats: int) -> None:
    if repeats < 1 or any(n < 1 for n in categories):
        raise InputError(
            f"got categories {list(categories)} and {repeats} repeats; expected at least 1 of each"
        )
    if names is not None and len(names) < max(categories):
        raise InputError(
            f"there are {len(names)} category names, {max(categories)} are asked for; give a "
            "longer list or smaller numbers"
        )


def run_child(started: float, imported: float) -> None:
    """Be the measured process: read an order from standard input, write the answer to its file.

    Args:
        started: when Python had started, by ``time.monotonic``.
        imported: when the runtime was imported.
    """
    order = _Order(**json.load(sys.stdin))
    ready = time.monotonic()
    # The benchmark's own work up to this point does not belong to the time to a label map.
    spent = {"interpreter": started - order.spawned, "imports": imported - started}
    answer: dict[str, Any]
    try:
        answer = _measured(order, spent, ready)
    except EscNetError as error:
        answer = {"error": str(error), "input": isinstance(error, InputError)}
    Path(order.answer).write_text(json.dumps(answer), encoding="utf-8")


def _measured(order: _Order, spent: dict[str, float], ready: float) -> dict[str, Any]:
    with Segmenter(order.bundle, order.backend, chunk=order.chunk, cache=order.cache) as segmenter:
        if segmenter.device_pipeline is not None:
            raise InputError(
                f"footprint measures the CPU, and {segmenter.backend} runs on a GPU: choose "
                "--backend onnxruntime, or measure with make gpu-check"
            )
        opened = time.monotonic()
        vocabulary = segmenter.vocabulary(order.names)
        embedded = time.monotonic()
        pixels = _made_up_image() if order.image is None else load_image(order.image)
        segmenter(pixels, vocabulary)
        spent |= {
            "open": opened - ready,
            "vocabulary": embedded - opened,
            "image": time.monotonic() - embedded,
        }
        startup = {**spent, "total": sum(spent.values()), "peak_memory_bytes": peak_memory()}
        clock = segmenter.pipeline.clock.seconds
        clock.clear()
        seconds = []
        for _ in range(order.repeats):
            start = time.perf_counter()
            segmenter(pixels, vocabulary)
            seconds.append(time.perf_counter() - start)
        name = "made up" if order.image is None else Path(order.image).name
        return {
            "startup": startup,
            "seconds": seconds,
            "stages": _by_kind(clock, sum(seconds), order.repeats),
            "distinct_categories": len(vocabulary.embeddings),
            "chunk": segmenter.chunk,
            "backend": segmenter.backend,
            "image": f"{name}, {pixels.shape[1]}×{pixels.shape[0]}",
            "peak_memory_bytes": peak_memory(),
        }


def _by_kind(clock: Mapping[str, float], total: float, images: int) -> dict[str, float]:
    """Mean seconds an image; "esc0_sam", "esc1_sam", … add up to "sam"."""
    if images == 0:
        return {}
    stages = {kind: seconds / images for kind, seconds in by_kind(clock).items()}
    return {**stages, "other": total / images - sum(stages.values())}


def _run(order: _Order, repeats: int) -> dict[str, Any]:
    """Run one process and give its answer."""
    answer = Path(order.answer)
    answer.unlink(missing_ok=True)
    order = replace(order, repeats=repeats, spawned=time.monotonic())
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps(asdict(order)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode or not answer.exists():
        # A negative code is the signal that ended it; -9 is how Linux frees memory.
        raise BackendError(
            f"the process measured at {len(order.names)} categories ended with code "
            f"{done.returncode}{' (out of memory?)' if done.returncode == -9 else ''}:\n"
            f"{done.stderr.strip() or 'it said nothing'}"
        )
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        raise (InputError if found["input"] else BackendError)(found["error"])
    return found


def _row(categories: int, first: Mapping[str, Any], second: Mapping[str, Any]) -> FootprintRow:
    seconds = second["seconds"]
    prompts = second["stages"]["prompts"]
    return FootprintRow(
        categories=categories,
        distinct_categories=second["distinct_categories"],
        chunk=second["chunk"],
        backend=second["backend"],
        image=second["image"],
        image_seconds=statistics.median(seconds),
        image_seconds_each=tuple(seconds),
        prompt_share=prompts / statistics.fmean(seconds),
        peak_memory_bytes=second["peak_memory_bytes"],
        filled_cache=Startup(**second["startup"]),
        empty_cache=Startup(**first["startup"]),
        stages=second["stages"],
    )


def _made_up_image() -> ImageArray:
    """A gradient in each colour."""
    height, width = _MADE_UP
    y, x = np.mgrid[:height, :width]
    colours = (255 * x // width, 255 * y // height, 255 * (x + y) // (width + height))
    return np.ascontiguousarray(np.stack(colours, axis=2).astype(np.uint8))
