"""The parts of ``gpu-check``; each adds rows to its report."""

import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from escnet_runtime.gpu.layout import bucket_of
from escnet_runtime.images import ImageArray
from escnet_runtime.postprocess import resize_bilinear
from escnet_runtime.result import Segmentation
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

from ..device_memory import watched_memory
from ..percentiles import percentiles
from ..stages import by_kind
from ..subjects import KNOWN, known_categories, load_model, made_up_images, pictures
from .plan import CheckPlan, Report
from .subjects import export, open_segmenter, ort_graphs, words

__all__ = ["RUN"]

_WARM_UP: Final = 3
_COMPARED: Final = 4  # most images whose labels are compared
_CLEAR: Final = 0.01  # least lead of a clear label, as a share of the logits' standard deviation
_SOAK_CATEGORIES: Final = 19
#: Least share of equal labels on images and names of the kind that a model was trained for.
_AGREEMENT: Final = 0.999
#: Largest error of a memory plan, as a share of the memory that was taken.
_OFF_PLAN: Final = 0.1
#: Bytes by which memory may grow from the first half of a soak to the second. What ONNX Runtime
#: keeps of 256 images, until it is waited for, is about half of that.
_GROWTH: Final = 128 << 20
_LEAST_ROWS: Final = 4  # a soak with fewer rows does not show growth
#: Images until ONNX Runtime launches its recorded graphs.
_UNTIL_RECORDED: Final = 4
_RECORDED: Final = "escnet, ONNX Runtime's own CUDA graphs"
_TESTS: Final = ("tests/kernels", "tests/device", "tests/gpu")

_Floats = npt.NDArray[np.float32]


def _tests(plan: CheckPlan, report: Report) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(test for test in _TESTS if (root / test).exists())],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    lines = done.stdout.splitlines()
    report.add(passed=done.returncode == 0, code=done.returncode, summary=(lines or [""])[-1])
    if done.returncode:
        report.errors.append("\n".join(lines[-80:]))


def _bundles(plan: CheckPlan, report: Report) -> None:
    for model, precision in itertools.product(plan.models, plan.precisions):
        with report.attempt(f"{model} {precision}"):
            start = time.perf_counter()
            export(plan, model, precision)
            seconds = time.perf_counter() - start
            report.add(model=model, precision=precision, seconds=seconds)


def _pipeline(plan: CheckPlan, report: Report) -> None:
    for model, precision, bundle in _each_bundle(plan, report):
        images = pictures(model, plan.size, min(plan.repeats, _COMPARED))
        with (
            open_segmenter(bundle, plan, "onnxruntime") as on_cpu,
            open_segmenter(bundle, plan) as on_gpu,
        ):
            # A large model takes half a minute an image for hundreds of categories on the CPU.
            for categories in _cpu_categories(model, plan):
                with report.attempt(f"{model} {precision}, {categories} categories"):
                    vocabulary = words(on_cpu, categories)
                    row = _compared(on_gpu, on_cpu, vocabulary, vocabulary, images)
                    report.add(model=model, precision=precision, categories=categories, **row)
                    # With words that the model does not know, labels are near-ties.
                    known = model in KNOWN and categories == known_categories(model)
                    report.expect(
                        not known or row["agreement"] >= _AGREEMENT,
                        f"{model} {precision}, {categories} categories: "
                        f"{row['agreement']:.2%} of the labels are the CPU's, expected at least "
                        f"{_AGREEMENT:.1%}",
                    )


def _cpu_categories(model: str, plan: CheckPlan) -> list[int]:
    if model in KNOWN:  # small
        return _with_its_own(model, plan)
    return [count for count in plan.categories if count <= 58]


def _with_its_own(model: str, plan: CheckPlan) -> list[int]:
    """The plan's numbers of categories and the number that the model was trained for.

    With fewer, many pixels show none of the categories and are near-ties.
    """
    return sorted({*plan.categories, *([known_categories(model)] if model in KNOWN else [])})


def _parity(plan: CheckPlan, report: Report) -> None:
    import torch

    from escnet_export.reference import TorchBackend

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for model, precision, bundle in _each_bundle(plan, report):
        images = pictures(model, plan.size, min(plan.repeats, _COMPARED))
        reference, _, _ = load_model(model)
        reference = reference.float().eval().requires_grad_(False).to(plan.device)
        with (
            Segmenter(bundle, TorchBackend(reference), cache=None, chunk=64) as in_torch,
            open_segmenter(bundle, plan) as on_gpu,
        ):
            for categories in _with_its_own(model, plan):
                with report.attempt(f"{model} {precision}, {categories} categories"):
                    texts = words(on_gpu, categories), words(in_torch, categories)
                    row = _compared(on_gpu, in_torch, *texts, images)
                    report.add(model=model, precision=precision, categories=categories, **row)


def _compared(
    segmenter: Segmenter,
    reference: Segmenter,
    vocabulary: Vocabulary,
    its_vocabulary: Vocabulary,
    images: list[ImageArray],
) -> dict[str, Any]:
    """Shares of equal labels, of all pixels and of clear ones alone, and errors of the logits."""
    equal, clear_equal, clear_share, apart = [], [], [], []
    confidence = 0.0
    for image in images:
        got, want = segmenter(image, vocabulary), reference(image, its_vocabulary)
        logits = _logits(reference, image, its_vocabulary)
        distance = _logits(segmenter, image, vocabulary) - logits
        same, clear = got.labels == want.labels, _decided(logits, image.shape[:2])
        equal.append(same.mean())
        clear_equal.append(same[clear].mean() if clear.any() else 1.0)
        clear_share.append(clear.mean())
        apart.append(np.linalg.norm(distance) / np.linalg.norm(logits))
        difference = got.confidence.astype(np.float32) - want.confidence
        confidence = max(confidence, float(np.abs(difference).max()))
    return {
        "images": len(images),
        "agreement": float(np.mean(equal)),
        "agreement_worst": float(np.min(equal)),
        "clear_agreement": float(np.mean(clear_equal)),
        "clear_share": float(np.mean(clear_share)),
        "logits_relative_l2": float(np.max(apart)),
        "confidence_apart": confidence,
    }


def _logits(segmenter: Segmenter, image: ImageArray, vocabulary: Vocabulary) -> _Floats:
    return np.concatenate([part for _, part in segmenter.image_logits(image, vocabulary)])


def _decided(logits: _Floats, size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Pixels whose best category leads by more than rounding."""
    best, second = np.full((2, *size), -np.inf, np.float32)
    for start in range(0, len(logits), 32):  # all categories at image size would be gigabytes
        for row in resize_bilinear(logits[start : start + 32], size[0], size[1]):
            np.maximum(second, np.minimum(best, row), out=second)
            np.maximum(best, row, out=best)
    clear: npt.NDArray[np.bool_] = best - second > _CLEAR * logits.std()
    return clear


def _memory(plan: CheckPlan, report: Report) -> None:
    images = made_up_images(plan.size, 4)
    for model, precision, bundle in _each_bundle(plan, report):
        for categories in plan.categories:
            with (
                report.attempt(f"{model} {precision}, {categories} categories"),
                watched_memory() as used,
                open_segmenter(bundle, plan) as segmenter,
            ):
                vocabulary = words(segmenter, categories)
                opened = used()
                planned = segmenter.plan(categories, plan.size)
                ready = used()
                for _ in segmenter.stream(images * 3, vocabulary):
                    pass
                measured = used() - opened
                ratio = planned.total_bytes / max(measured, 1)
                report.add(
                    model=model,
                    precision=precision,
                    categories=categories,
                    chunk=planned.chunk,
                    planned_bytes=planned.total_bytes,
                    arena_bytes=planned.arena_bytes,
                    slot_bytes=planned.slot_bytes,
                    backend_bytes=planned.backend_bytes,
                    opened_bytes=opened,
                    ready_bytes=ready - opened,
                    measured_bytes=measured,
                    ratio=ratio,
                )
                report.expect(
                    abs(ratio - 1) <= _OFF_PLAN,
                    f"{model} {precision}, {categories} categories: {planned.total_bytes:,} bytes "
                    f"were planned and {measured:,} taken, expected within {_OFF_PLAN:.0%}",
                )
                print(planned.table(), flush=True)


def _latency(plan: CheckPlan, report: Report) -> None:
    image = made_up_images(plan.size, 1)[0]
    for model, precision, bundle in _each_bundle(plan, report):
        with ExitStack() as owned:
            ours = [
                owned.enter_context(open_segmenter(bundle, plan, chunk=chunk))
                for chunk in plan.chunks or (None,)
            ]
            # What takes minutes or may end the process comes after the others' rows are on disk.
            beside = ["torch eager"]
            beside += ["recorded"] if plan.ort_graphs else []
            beside += ["torch.compile"] if plan.compile else []
            for other, categories in itertools.product(beside, plan.categories):
                what = f"{model} {precision}, {categories} categories"
                with report.attempt(what), ExitStack() as opened:
                    vocabulary = words(ours[0], categories)
                    mine, runs = _ours(ours, vocabulary), dict[str, Call]()
                    with report.attempt(f"{other}, {what}"):
                        if other == "recorded":
                            mine[_RECORDED] = _recorded(opened, bundle, plan, vocabulary, image)
                        else:
                            runs = _in_torch(model, vocabulary, plan, compiled="compile" in other)
                    rows = list(_taking_turns(mine | runs, image, plan.repeats))
                    equal = _equal_labels(mine, image) if len(mine) > 1 else {}
                    for row in rows:
                        name = row["implementation"]
                        more = {"agreement": equal[name]} if name in equal else {}
                        report.add(
                            model=model, precision=precision, categories=categories, **row, **more
                        )


def _recorded(
    owned: ExitStack, bundle: Path, plan: CheckPlan, vocabulary: Vocabulary, image: ImageArray
) -> "Ours":
    """A run with ONNX Runtime's own CUDA graphs, which are recorded before this returns."""
    with ort_graphs():
        segmenter = owned.enter_context(open_segmenter(bundle, plan))
    for _ in range(_UNTIL_RECORDED):
        segmenter(image, vocabulary)
    return partial(segmenter, vocabulary=vocabulary)


def _equal_labels(runs: Mapping[str, "Ours"], image: ImageArray) -> dict[str, float]:
    """The share of each run's labels that are equal to the first run's."""
    labels = {name: run(image).labels for name, run in runs.items()}
    first = next(iter(labels.values()))
    return {name: float((one == first).mean()) for name, one in labels.items()}


Call = Callable[[ImageArray], object]
Ours = Callable[[ImageArray], Segmentation]


def _ours(segmenters: Sequence[Segmenter], vocabulary: Vocabulary) -> dict[str, Ours]:
    """A call for each distinct chunk; chunks larger than all categories are the same."""
    found: dict[str, Ours] = {}
    for segmenter in segmenters:
        several = len(segmenters) > 1
        found[f"escnet, chunks of {segmenter.chunk}" if several else "escnet"] = partial(
            segmenter, vocabulary=vocabulary
        )
        if segmenter.chunk >= bucket_of(len(vocabulary.names)):
            break
    return found


def _in_torch(
    model: str, vocabulary: Vocabulary, plan: CheckPlan, *, compiled: bool
) -> dict[str, Call]:
    import torch

    from ..latency.torch_runs import TorchRun

    half = plan.device == "cuda"
    moved = (
        load_model(model)[0]
        .eval()
        .requires_grad_(False)
        .to(device=plan.device, dtype=torch.float16 if half else torch.float32)
    )
    torch.compiler.reset()
    call = TorchRun(moved, form="shared", compiled="static" if compiled else None)
    call(made_up_images(plan.size, 1)[0], vocabulary.embeddings)
    name = "torch.compile" if compiled else "torch eager"
    return {f"{name} {'fp16' if half else 'fp32'}": _bound(call, vocabulary)}


def _bound(call: Callable[[ImageArray, _Floats], object], vocabulary: Vocabulary) -> Call:
    return lambda image: call(image, vocabulary.embeddings)


def _taking_turns(
    runs: Mapping[str, Call], image: ImageArray, repeats: int
) -> Iterator[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(_WARM_UP):
            run(image)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            times[name].append(1e3 * (time.perf_counter() - start))
    for name, spent in times.items():
        p50, p95, p99 = percentiles(spent)
        yield {
            "implementation": name,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "repeats": repeats,
        }


def _stages(plan: CheckPlan, report: Report) -> None:
    image = made_up_images(plan.size, 1)[0]
    for model, precision, bundle in _each_bundle(plan, report):
        with open_segmenter(bundle, plan) as segmenter:
            pipeline = segmenter.device_pipeline
            if pipeline is None:
                raise ValueError(f"{plan.backend} has no pipeline on a device")
            for categories in plan.categories:
                with report.attempt(f"{model} {precision}, {categories} categories"):
                    text = words(segmenter, categories).embeddings
                    profiles = [pipeline.profile(image, text) for _ in range(_WARM_UP + 10)]
                    kept = profiles[_WARM_UP:]
                    stages = _medians([one.device for one in kept])
                    host = _medians([one.host for one in kept])
                    total = sum(stages.values())
                    report.add(
                        model=model,
                        precision=precision,
                        categories=categories,
                        total_ms=total,
                        prompt_share=stages["prompts"] / total,
                        stages=by_kind(stages),
                        host_ms=sum(host.values()),
                        host_stages=by_kind(host),
                    )


def _medians(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.median([one[name] for one in profiles])) for name in profiles[0]}


def _soak(plan: CheckPlan, report: Report) -> None:
    height, width = plan.size
    sizes = [(height, width), (height // 2, width), (height, width // 2)]
    images = [image for size in sizes for image in made_up_images(size, 4)]
    model, precision = plan.models[0], plan.precisions[0]
    every = max(plan.images // 20, 1)
    with (
        watched_memory() as used,
        open_segmenter(plan.bundle(model, precision), plan) as segmenter,
    ):
        vocabulary = words(segmenter, _SOAK_CATEGORIES)
        expected = [segmenter(image, vocabulary).labels for image in images]
        start, wrong = time.perf_counter(), 0
        source = itertools.islice(itertools.cycle(images), plan.images)
        for count, result in enumerate(segmenter.stream(source, vocabulary), start=1):
            wrong += not np.array_equal(result.labels, expected[(count - 1) % len(images)])
            if count % every == 0:
                report.add(
                    images=count,
                    device_bytes=used(),
                    host_bytes=_resident(),
                    images_a_second=count / (time.perf_counter() - start),
                    other_labels=wrong,
                )
        report.expect(wrong == 0, f"{wrong:,} images got other labels than the first time")
    _expect_no_growth(report)


def _expect_no_growth(report: Report) -> None:
    """Compare the least memory of each half, because other processes on the GPU come and go."""
    rows = report.rows
    if len(rows) < _LEAST_ROWS:
        return
    for name, what in (("device_bytes", "the GPU's memory"), ("host_bytes", "the host's memory")):
        first, second = (
            min(int(row[name]) for row in half)
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
        )
        report.expect(
            second - first <= _GROWTH,
            f"{what} grew from {first:,} to {second:,} bytes, expected at most {_GROWTH:,} more "
            "(on the GPU, other processes count too)",
        )


def _resident() -> int:
    """Resident memory of this process in bytes, or its peak if the system tells only that."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _each_bundle(plan: CheckPlan, report: Report) -> Iterator[tuple[str, str, Path]]:
    for model, precision in itertools.product(plan.models, plan.precisions):
        bundle = plan.bundle(model, precision)
        if not bundle.exists():
            report.errors.append(f"there is no bundle {bundle.name}; run the part 'bundles' first")
            report.save()
            continue
        yield model, precision, bundle


#: Part → what runs it.
RUN: Final[dict[str, Callable[[CheckPlan, Report], None]]] = {
    "tests": _tests,
    "bundles": _bundles,
    "pipeline": _pipeline,
    "parity": _parity,
    "memory": _memory,
    "latency": _latency,
    "stages": _stages,
    "soak": _soak,
}
