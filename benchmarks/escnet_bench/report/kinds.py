"""What the report takes from each kind of result file."""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from escnet_runtime.errors import InputError

from .facts import Accuracy, LeftOut, Operations, Ratio, Result, Timing
from .kinds_gpu import gpu_latency, gpu_memory, gpu_stages
from .opened import Fill, Opened
from .schema import (
    EvalDocument,
    FootprintRow,
    GflopRow,
    GoldenOf,
    LatencyRow,
    LeftOutRow,
    ParityRowOf,
    PrecisionRowOf,
    RatioRow,
    StageOf,
    taken,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["FILL"]

_UNNAMED: Final = "model not named"


def _latency(opened: Opened, result: Result) -> Result:
    timings = tuple(
        Timing(**opened.where, bundle=opened.sha256, **_fields(row))
        for row, _ in opened.each(LatencyRow)
    )
    ratios = tuple(
        Ratio(**opened.where, **_fields(entry)) for entry in opened.entries("ratios", RatioRow)
    )
    left_out = tuple(
        LeftOut(**opened.where, what=_what(entry), reason=entry.reason)
        for entry in opened.entries("left_out", LeftOutRow)
    )
    return dataclasses.replace(result, timings=timings, ratios=ratios, left_out=left_out)


def _what(entry: LeftOutRow) -> str:
    number = "any number of categories"
    if entry.categories is not None:
        number = f"{entry.categories} categories"
    allocator = None if entry.allocator is None else f"allocator {entry.allocator}"
    parts = (entry.model, entry.implementation, entry.precision, number, allocator)
    return ", ".join(part for part in parts if part)


def _fields(row: "DataclassInstance") -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


def _footprint(opened: Opened, result: Result) -> Result:
    timings = []
    for row, _ in opened.each(FootprintRow):
        stages = None if row.stages is None else {k: v * 1e3 for k, v in row.stages.items()}
        timings.append(
            Timing(
                **opened.where,
                **_bundle(opened),
                implementation=_implementation(row.backend),
                categories=row.categories,
                chunk=row.chunk,
                repeats=len(row.image_seconds_each) if row.image_seconds_each else None,
                p50_ms=row.image_seconds * 1e3,
                prompt_share=row.prompt_share,
                first_mask_seconds=(row.filled_cache or {}).get("total"),
                stages=stages,
                peak_memory_bytes=row.peak_memory_bytes,
            )
        )
    return dataclasses.replace(result, timings=tuple(timings))


def _bundle(opened: Opened) -> dict[str, Any]:
    if opened.bundle is None:
        return {"model": _UNNAMED, "precision": "precision not named", "bundle": None}
    return {
        "model": opened.bundle.model,
        "precision": opened.bundle.precision,
        "bundle": opened.bundle.sha256,
    }


def _implementation(description: str) -> str:
    """A backend's name from its description, such as "ONNX Runtime 1.32.0 on CPU"."""
    for start, name in (
        ("ONNX Runtime", "onnxruntime"),
        ("OpenVINO", "openvino"),
        ("TensorRT-RTX", "tensorrt-rtx"),
        ("TensorRT for RTX", "tensorrt-rtx"),
        ("TensorRT", "tensorrt"),
        ("torch ", "torch"),
    ):
        if description.startswith(start):
            return name
    return description


def _gflop(opened: Opened, result: Result) -> Result:
    operations = tuple(
        Operations(
            file=opened.file,
            model=row.preset,
            categories=row.categories,
            form=row.form,
            gflop=row.gflop,
            of_plain=row.of_plain,
        )
        for row, _ in opened.each(GflopRow)
    )
    return dataclasses.replace(result, operations=operations)


def _precision(opened: Opened, result: Result) -> Result:
    # Rows name neither model nor data; the method does.
    method = str(result.conditions.get("method") or "")
    model = re.search(r"checkpoint: ([\w.-]+)\.safetensors", method)
    dataset = re.search(r"images: ([^,;]+), of the gate", method)
    accuracies = tuple(
        Accuracy(
            **opened.where,
            model=_UNNAMED if model is None else f"checkpoint {model[1]}",
            implementation="onnxruntime",  # the benchmark has no other
            precision=row.precision,
            dataset="data not named" if dataset is None else dataset[1],
            images=row.images,
            categories=row.categories,
            miou=row.miou,
            reference_miou=row.torch_miou,
            pixel_agreement=row.pixel_agreement,
            prompt_flips=(row.prompt_flips,),
            prompts=row.prompts,
            worst_stage=row.worst_stage,
            worst_stage_l2=row.worst_stage_l2,
            milliseconds=None if row.image_seconds is None else row.image_seconds * 1e3,
            note=row.untimed,
        )
        for row, _ in opened.each(PrecisionRowOf)
    )
    return dataclasses.replace(result, accuracies=accuracies)


def _parity(opened: Opened, result: Result) -> Result:
    if not all(isinstance(row, Mapping) and "implementation" in row for row in opened.rows):
        why = (
            'rows of "parity" without "implementation", as they were before escnet-bench parity: '
            "they do not say what ran"
        )
        return dataclasses.replace(result, unused=why)
    accuracies = tuple(
        _parity_row(opened, row, given, f"{opened.file}: rows[{index}]")
        for index, (row, given) in enumerate(opened.each(ParityRowOf))
    )
    return dataclasses.replace(result, accuracies=accuracies)


def _parity_row(opened: Opened, row: ParityRowOf, given: Mapping[str, Any], where: str) -> Accuracy:
    stages = _read_stages(given.get("stages"), where)
    worst, farthest = _worst(stages)
    agreement, flips = row.pixel_agreement, row.prompt_flips
    prompts, note = sum(row.prompts or ()) or None, None
    if row.reference is None and given.get("golden") is not None:
        golden = taken(given["golden"], GoldenOf, f"{where}.golden")
        agreement, flips, prompts = golden.pixel_agreement, (golden.prompt_flips,), golden.prompts
        note = "no PyTorch there: agreement and flips of the bundle's golden image alone"
        if golden.failure:
            note += f", whose run failed: {golden.failure}"
    return Accuracy(
        **opened.where,
        bundle=opened.sha256,
        model=row.model,
        implementation=row.implementation,
        precision=row.precision,
        dataset=row.dataset,
        images=row.images,
        categories=row.categories,
        miou=row.miou,
        reference_miou=row.reference_miou,
        pixel_accuracy=row.pixel_accuracy,
        pixel_agreement=agreement,
        prompt_flips=flips,
        prompts=prompts,
        worst_stage=worst,
        worst_stage_l2=farthest,
        stages=stages,
        note=note,
    )


def _read_stages(stages: Any, where: str) -> Mapping[str, tuple[float | None, float | None]] | None:
    """Relative L2 and cosine by stage; null there is not finite."""
    if stages is None:
        return None
    if not isinstance(stages, Mapping) or not stages:
        raise InputError(f"{where}.stages: expected an object with stages, or null")
    read = {name: taken(one, StageOf, f"{where}.stages.{name}") for name, one in stages.items()}
    return {name: (one.relative_l2, one.cosine) for name, one in read.items()}


def _worst(
    stages: Mapping[str, tuple[float | None, float | None]] | None,
) -> tuple[str | None, float | None]:
    """The stage farthest from PyTorch; one that is not finite counts as infinitely far."""
    if stages is None:
        return None, None
    worst = max(stages, key=lambda name: _or_infinite(stages[name][0]))
    return worst, stages[worst][0]


def _or_infinite(value: float | None) -> float:
    return float("inf") if value is None else value


def _eval(opened: Opened, result: Result) -> Result:
    found = taken(opened.document, EvalDocument, opened.file)
    notes = []
    if found.correlation:
        notes.append("CLIP's correlation alone")
    if found.window not in (None, "none"):
        notes.append(f"window {found.window}")
    if found.shortlist is not None:
        notes.append(f"shortlist {found.shortlist}")
    accuracy = Accuracy(
        **opened.where,
        # Only evaluations like the timed runs (one window, whole model, all categories) are joined.
        bundle=None if notes else opened.sha256,
        model=found.model,
        implementation=_implementation(found.backend),
        precision=found.precision,
        dataset=found.dataset or "not named",
        images=found.images,
        categories=found.categories,
        miou=found.miou,
        pixel_accuracy=found.pixel_accuracy,
        note=", ".join(notes) or None,
    )
    return dataclasses.replace(result, accuracies=(accuracy,))


#: Kind of file → what takes its facts.
FILL: Final[dict[str, Fill]] = {
    "eval": _eval,
    "footprint": _footprint,
    "gflop": _gflop,
    "gpu-check latency": gpu_latency,
    "gpu-check memory": gpu_memory,
    "gpu-check stages": gpu_stages,
    "latency": _latency,
    "parity": _parity,
    "precision": _precision,
}
