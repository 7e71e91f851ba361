"""``escnet-bench latency``: from its options to the result document."""

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from escnet_runtime.console import Console
from escnet_runtime.errors import BackendError
from escnet_runtime.images import ImageArray, load_image
from escnet_runtime.manifest import Precision
from escnet_runtime.nvidia import Gpu, find_gpu
from escnet_runtime.segmenter import Segmenter

from ..conditions import Conditions, board_model
from ..energy import open_counter
from ..results import Document, plain, result_document
from ..subjects import category_names, pictures
from .assemble import assemble_rows
from .checkout import require_checkout
from .choose import allocators, check_precision, chosen_variants
from .floor import Peak, cpu_peak, gpu_peak
from .forecast import Forecast
from .measure import Measurement
from .options import PRESET, REPEATS
from .peaks import measure_peaks
from .plan import Allocator, Settings, Variant, cells, check_numbers
from .process import ALLOCATORS, Served, ServedProcess, inherited, thread_variables
from .rows import Found, LatencyRow, ratios_of
from .runs import Order, save_vocabularies
from .subject import Subject, open_subject
from .tables import latency_tables

__all__ = ["METHOD", "latency"]

_LOG = logging.getLogger("escnet_bench")
METHOD: Final = (
    "milliseconds from uint8 pixels to labels in host memory, wall clock; implementations of a "
    "cell live in one process and take turns, call by call; first calls and warm-up apart; ratios "
    "are medians of those within a round (docs/benchmarks.md)"
)
_SIZE: Final = (480, 640)
#: Rounds that are not counted, on a CPU and on a GPU.
_WARM_UP: Final = {False: 1, True: 3}
#: Least share of equal labels between an implementation of a trained model and ours.
_AGREEMENT: Final = 0.99
#: This implementation's k-means starts from other seeds, so its prompts may differ.
_OTHER_PROMPTS: Final = "torch-naive-ppg"


def latency(arguments: argparse.Namespace, console: Console) -> Document:
    """Measure and show tables; returns the result document.

    Raises:
        InputError: an option cannot be used.
        BackendError: an implementation that was named is not installed, or nothing ran.
    """
    began = time.monotonic()
    device = _device(arguments.device)
    gpu = device is not None
    # Read before a bundle is exported, so that the load is not that of the export.
    conditions = Conditions.now(METHOD, device="gpu" if gpu else "cpu")
    repeats = REPEATS[gpu] if arguments.repeats is None else arguments.repeats
    check_numbers(arguments.categories, repeats, arguments.minutes)
    image = None if arguments.image is None else load_image(arguments.image)
    peer: Path | None = arguments.cat_seg
    if peer is not None:
        require_checkout(peer)
    name = arguments.preset or PRESET
    given = arguments.checkpoint or arguments.bundle
    with (
        TemporaryDirectory(prefix="escnet-latency-") as work,
        console.progress("latency", None) as advance,
    ):
        advance("the bundle")
        subject = open_subject(
            preset=None if given else name,
            checkpoint=arguments.checkpoint,
            bundle=arguments.bundle,
            precision=Precision(arguments.precision or ("fp16" if gpu else "fp32")),
            images=pictures(name if given is None else "", _SIZE, 1),
        )
        check_precision(subject, arguments.precision)
        variants, missing = chosen_variants(subject, arguments.implementations, peer, gpu=gpu)
        advance("text embeddings and the hardware's peak")
        bench = _Bench(
            subject=subject,
            order=replace(
                _order(subject, arguments.categories, image, Path(work), gpu=gpu),
                cat_seg=None if peer is None else str(peer.resolve()),
            ),
            settings=Settings(
                variants=variants,
                cells=cells(arguments.categories, allocators(arguments.allocators, gpu=gpu)),
                seconds=60 * arguments.minutes - (time.monotonic() - began),
                repeats=repeats,
                warm_up=_WARM_UP[gpu],
            ),
            conditions=conditions.of(subject.bundle),
            device=device,
        )
        document = bench.run(missing, advance)
    console.print(*latency_tables(document))
    return document


class _Bench:
    """One run of the benchmark on a subject."""

    def __init__(
        self,
        *,
        subject: Subject,
        order: Order,
        settings: Settings,
        conditions: Conditions,
        device: Gpu | None,
    ) -> None:
        self._subject, self._order, self._settings = subject, order, settings
        self._conditions, self._device = conditions, device
        self._gflop = subject.gflop()
        self._energy: str | None = None

    def run(self, missing: Mapping[Variant, str], advance: Any) -> Document:
        """Measure everything."""
        began = time.monotonic()
        bundle = self._subject.bundle
        conditions = self._conditions
        peak = _peak(self._device)
        forecast = Forecast(self._work)
        counter = open_counter(gpu=self._device)
        self._energy = None if counter is None else counter.source
        try:
            measurement = Measurement(
                self._settings,
                forecast,
                self._start,
                gpu=self._device is not None,
                counter=counter,
                step=advance,
            )
            found = measurement.run()
        finally:
            if counter is not None:
                counter.close()
        for variant, reason in missing.items():
            found.leave_out(variant, None, reason)
        until = began + self._settings.seconds
        peaks = measure_peaks(found, forecast, self._start, until=until, step=advance)
        peak = _higher(peak, _peak(self._device))
        rows = assemble_rows(
            bundle.manifest.model.name,
            found,
            peaks,
            gflop=self._gflop,
            peak=peak,
            weight_bytes=self._subject.weight_bytes,
        )
        if not rows:
            reasons = "\n".join(f"{one.implementation}: {one.reason}" for one in found.left_out)
            raise BackendError(f"nothing could be measured:\n{reasons}")
        self._warn(rows)
        return self._document(conditions.finished(), found, rows, peak, measurement.threads)

    def _start(self, allocator: Allocator) -> Served:
        return ServedProcess(self._order, allocator)

    def _work(self, form: Any, categories: int) -> float:
        chunk = self._subject.bundle.manifest.constants.chunk
        counted = self._gflop(form, categories, None if form == "plain" else chunk)
        return 20.0 + categories if counted is None else counted

    def _document(
        self,
        conditions: Conditions,
        found: Found,
        rows: Sequence[LatencyRow],
        peak: Peak | None,
        threads: Mapping[str, int],
    ) -> Document:
        document = result_document("latency", conditions, rows)
        used = {cell.allocator for cell in self._settings.cells}
        document["conditions"] |= {
            "variables": inherited(document["conditions"]["variables"]) | thread_variables(),
            "threads": dict(threads),
            "energy": self._energy,
            "allocators": {name: ALLOCATORS[name] for name in sorted(used)},
            "peak": None if peak is None else plain(asdict(peak)),
        }
        name = self._subject.bundle.manifest.model.name
        ratios = [
            one for cell, timed in found.timed.items() for one in ratios_of(name, cell, timed)
        ]
        document["left_out"] = [asdict(one) for one in found.left_out]
        document["ratios"] = [plain(asdict(one)) for one in ratios]
        return document

    def _warn(self, rows: Sequence[LatencyRow]) -> None:
        """Warn if an implementation that should give our labels does not."""
        if not (self._subject.same_weights and self._subject.bundle.manifest.model.trained):
            return
        for row in rows:
            other = row.implementation != _OTHER_PROMPTS
            if other and row.agreement is not None and row.agreement < _AGREEMENT:
                _LOG.warning(
                    "%s at %s gives %.2f %% of our labels at %d categories, expected at least "
                    "%.0f %%: it computes something else, so its time cannot be compared",
                    row.implementation,
                    row.precision,
                    100 * row.agreement,
                    row.categories,
                    100 * _AGREEMENT,
                )


def _device(asked: str) -> Gpu | None:
    """The GPU to measure on; None for the processor."""
    if asked == "cpu":
        return None
    found = find_gpu()
    if asked == "gpu" and found is None:
        raise BackendError("--device gpu: there is no NVIDIA GPU with a driver here")
    return found


def _order(
    subject: Subject,
    categories: Sequence[int],
    image: ImageArray | None,
    work: Path,
    *,
    gpu: bool,
) -> Order:
    """The order for the measuring processes; its files are written into ``work``."""
    name = subject.bundle.manifest.model.name
    pixels = pictures(name, _SIZE, 1)[0] if image is None else image
    np.save(work / "image.npy", pixels)
    with Segmenter(subject.bundle, "onnxruntime") as segmenter:
        names = category_names(name, max(categories))
        segmenter.vocabulary(names)  # embed all names at once, into the cache
        vocabularies = {n: segmenter.vocabulary(names[:n]) for n in sorted(set(categories))}
    save_vocabularies(work / "texts.npz", vocabularies)
    return Order(
        bundle=str(subject.bundle.root),
        model=subject.torch_model,
        image=str(work / "image.npy"),
        texts=str(work / "texts.npz"),
        gpu=gpu,
        image_size=subject.image_size,
    )


def _higher(before: Peak | None, after: Peak | None) -> Peak | None:
    """The higher of two peaks: a busy machine does not reach what it can do."""
    if before is None or after is None:
        return before or after
    return max(before, after, key=lambda one: max(one.gflop_a_second.values()))


def _peak(device: Gpu | None) -> Peak | None:
    if device is None:
        return cpu_peak()
    return None if device.name is None else gpu_peak(device.name, board_model())
