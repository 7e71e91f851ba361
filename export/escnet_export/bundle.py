"""From a model to a bundle: export, check, measure, and only then put it in its place."""

import json
import logging
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch

from escnet.model import EscNet
from escnet.tokenizer import write_tokenizer
from escnet_runtime import __version__
from escnet_runtime.atomic import atomic_directory
from escnet_runtime.bundle import sha256_file
from escnet_runtime.confusion import Labels, ignore_index
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import (
    FileRef,
    Golden,
    Manifest,
    Parity,
    Precision,
    Stage,
    TensorSpec,
    TokenizerRef,
)
from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.tokenizer import Tokenizer
from escnet_runtime.vocabulary import TextPlan, assemble, plan_texts

from .calibrate import Calibration
from .check import CATEGORIES
from .description import constants_of, model_info
from .errors import ParityError
from .gate import AccuracyGate, Decision, Texts, inputs_of
from .golden import GOLDEN_FILES, write_golden
from .graphs import Port
from .page import ParityPicture, parity_page
from .parity import (
    Budget,
    Outcome,
    ParityReport,
    Sample,
    StageError,
    compare_pipelines,
    label_map,
    reference_sample,
    stage_error,
)
from .plan import PrecisionPlan
from .scenes import SceneSet, default_scenes
from .tensors import TensorStore
from .workshop import Built, Step, Workshop, open_backend

__all__ = ["ExportReport", "export_bundle"]

_LOG: Final = logging.getLogger("escnet_export")
#: The oldest ONNX Runtime that reads the opset and IR version we write.
_ORT_MINIMUM: Final = {Precision.FP32: "1.18", Precision.FP16: "1.18", Precision.BF16: "1.20"}
#: Images shown in parity.html.
_PICTURES: Final = 4
#: Errors of a device's golden run may be this many times those of the stages measured one by one:
#: it runs through all stages, so errors add up.
_GOLDEN_FACTOR: Final = 2.0
#: Share of the golden photo's labels that may differ on another machine, beside near-ties, which
#: rounding decides anew there: of untrained weights they are many.
_GOLDEN_PIXELS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did."""

    bundle: Path
    precision: Precision
    seconds: float
    parity: ParityReport
    checks: dict[str, dict[int, float]]


def export_bundle(
    model: EscNet,
    output: Path,
    *,
    precision: Precision,
    weights: str,
    trained: bool,
    images: Sequence[ImageArray] | None = None,
    scenes: SceneSet | None = None,
    budget: Budget | None = None,
    image_encoder: Precision | None = None,
    rest: Precision = Precision.FP16,
    calibration: Calibration | None = None,
    raise_blocks: bool = True,
    allow_parity_failure: bool = False,
    check_categories: Sequence[int] = CATEGORIES,
    step: Step = lambda _: None,
) -> ExportReport:
    """Export ``model`` as a bundle at ``output``; nothing is there before all of it is right.

    Where the precision costs more than the budget, the accuracy gate raises blocks until it holds
    (:mod:`escnet_export.gate`); the report names them.

    Args:
        model: made float32 in place, and left in evaluation mode and without gradients.
        output: a folder that does not exist, is empty, or is a bundle, which is then replaced.
        precision: of all graphs about which nothing else is said.
        weights: where the weights come from, for people.
        trained: decides the gate, see :class:`Budget`.
        images: for measuring, with the package's own categories.
        scenes: for measuring, with categories of their own and labels, if there are any; in place
            of ``images``. The package's own scenes are used where neither is given.
        budget: what may be lost; :meth:`Budget.default` by default.
        image_encoder: precision of the image encoder, if it differs.
        rest: with int8 and fp8, the type of what is not quantised, fp16 or fp32.
        calibration: with int8 and fp8, how ranges follow from values on the images; by default
            :meth:`Calibration.default`.
        raise_blocks: False leaves every block at its precision, whatever the budget says.
        allow_parity_failure: write the bundle all the same, and say so in it.
        check_categories: numbers of categories to check each graph at.
        step: told of each step as it begins, for showing progress.

    Raises:
        ExportError: a graph fails to export or does not compute what torch computes.
        ParityError: the budget is missed.
        InputError: ``output`` cannot be written or is something else than a bundle.
    """
    start = time.perf_counter()
    model = model.float().eval().requires_grad_(False)
    budget = budget or Budget.default(precision, image_encoder)
    golden = default_scenes(model.config)
    measured = scenes or (golden if images is None else _photos(images, golden))
    if not measured.images:
        raise InputError("there is no image to measure parity on; expected at least one")
    plan = PrecisionPlan(base=precision, image_encoder=image_encoder, rest=rest)
    with atomic_directory(output) as folder, TensorStore(folder) as store:
        (folder / "graphs").mkdir()
        context = model.config.clip.context_length
        write_tokenizer(
            folder / "tokenizer.json",
            vocab_size=model.config.clip.vocab_size,
            context_length=context,
        )
        tokenizer = Tokenizer.open(folder / "tokenizer.json", context)
        spec = model.config.preprocessing
        texts = _texts(model, tokenizer, measured)
        samples = _samples(model, measured, texts, spec, store, step)
        workshop = Workshop(
            model,
            folder / "work",
            check_categories,
            step=step,
            inputs=lambda graph: inputs_of(graph, samples, texts),
            calibration=calibration,
        )
        gate = AccuracyGate(
            model, workshop, samples, texts, spec=spec, trained=trained, budget=budget, step=step
        )
        decision = gate.fit(plan, raise_blocks=raise_blocks)
        report = decision.report
        if not report.passed and not allow_parity_failure:
            raise ParityError(_missed(report, raise_blocks))
        decision.built = workshop.deliver(decision.built, folder / "graphs")
        step("golden run")
        first = samples[0] if measured is golden else None
        _golden_run(model, folder, tokenizer, golden, first, decision)
        said = {"model": model.config.name, "precision": precision.value, "trained": trained}
        pictures = _pictures(samples, decision.outcomes, texts, spec)
        _write_parity(folder, {**report.to_dict(), **said, "reason": report.reason()}, pictures)
        step("manifest")
        manifest = _manifest(model, folder, decision, weights, trained, golden)
        (folder / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return ExportReport(
        bundle=output,
        precision=precision,
        seconds=time.perf_counter() - start,
        parity=report,
        checks={name: built.checks for name, built in decision.built.items()},
    )


def _photos(images: Sequence[ImageArray], scenes: SceneSet) -> SceneSet:
    """The user's images, for the categories of ``scenes``."""
    return SceneSet(images=tuple(images), categories=scenes.categories)


def _texts(model: EscNet, tokenizer: Tokenizer, scenes: SceneSet) -> Texts:
    plan = plan_texts(scenes.categories, model.config.templates)
    tokens = tokenizer.encode(plan.prompts, cleaned=True)
    with torch.inference_mode():
        embeddings = model.encode_text(torch.from_numpy(tokens)).numpy()
    return Texts(plan=plan, tokens=tokens, embeddings=embeddings)


def _samples(
    model: EscNet,
    scenes: SceneSet,
    texts: Texts,
    spec: Preprocessing,
    store: TensorStore,
    step: Step,
) -> list[Sample]:
    """All images through float32 torch."""
    text = assemble(texts.plan, texts.embeddings).embeddings
    samples = []
    for index, image in enumerate(scenes.images):
        step(f"torch, image {index + 1}")
        labels = _rows(scenes.labels[index], texts.plan) if scenes.labels else None
        samples.append(reference_sample(model, image, text, spec, labels, store=store))
    return samples


def _rows(labels: Labels, plan: TextPlan) -> Labels:
    """Labels as rows of the logits: a category that doubles an earlier one has no row."""
    if len(plan.label_of) == len(plan.names):
        return labels
    row_of = {int(label): row for row, label in enumerate(plan.label_of)}
    ignored = ignore_index(labels)
    table = np.full(int(ignored) + 1, ignored, labels.dtype)
    for label, row in row_of.items():
        table[label] = row
    rows: Labels = table[labels]
    return rows


def _write_parity(folder: Path, data: dict[str, Any], pictures: Sequence[ParityPicture]) -> None:
    (folder / "parity.json").write_text(_json(data), encoding="utf-8")
    (folder / "parity.html").write_text(parity_page(data, pictures), encoding="utf-8")


def _missed(report: ParityReport, raise_blocks: bool) -> str:
    kept = ", ".join(kept.block for kept in report.kept_higher)
    done = f", with {kept} kept higher" if kept else ""
    hint = "" if raise_blocks else "let the accuracy gate raise blocks (without --no-raise), "
    return (
        f"{report.reason()}{done}; nothing was written. To have a bundle, {hint}use a higher "
        "precision, a wider budget (--min-pixel-agreement, --max-prompt-flips, --max-miou-loss, "
        "--max-stage-l2), or --allow-parity-failure"
    )


def _pictures(
    samples: Sequence[Sample], outcomes: Sequence[Outcome], texts: Texts, spec: Preprocessing
) -> list[ParityPicture]:
    names = tuple(texts.plan.names[label] for label in texts.plan.label_of)
    pairs = zip(samples[:_PICTURES], outcomes, strict=False)
    return [_picture(sample, outcome, spec, names) for sample, outcome in pairs]


def _picture(
    sample: Sample, outcome: Outcome, spec: Preprocessing, names: tuple[str, ...]
) -> ParityPicture:
    want = sample.outcome
    return ParityPicture(
        image=sample.image,
        reference_labels=label_map(want.logits, spec.size, spec.size),
        typed_labels=label_map(outcome.logits, spec.size, spec.size),
        names=names,
        grid=want.prompts[0].regions.shape[1:],
        reference_prompts=want.prompts,
        typed_prompts=outcome.prompts,
    )


def _golden_run(
    model: EscNet,
    folder: Path,
    tokenizer: Tokenizer,
    scenes: SceneSet,
    sample: Sample | None,
    decision: Decision,
) -> None:
    """Write the golden run of the first of ``scenes``: ``sample``, if it was run already.

    If it was not, it is no image that the graphs were calibrated or measured on, and what they make
    of it is measured here: a device cannot be nearer to float32 than the graphs are. A stage may be
    off by the default budget at least. A user's tighter one is about stages one by one, and a wider
    one about what may be written: it is no excuse for a device that computes something else.
    """
    report, plan = decision.report, decision.plan
    usual = Budget.default(plan.base, plan.image_encoder)
    texts, spec = _texts(model, tokenizer, scenes), model.config.preprocessing
    tolerance = max(usual.stage_l2, _GOLDEN_FACTOR * _worst(report.stages.values()))
    if sample is None:
        text = assemble(texts.plan, texts.embeddings).embeddings
        store = TensorStore(folder)
        sample = reference_sample(model, scenes.images[0], text, spec, store=store)
        found, pixels = _on_golden(model, decision.built, sample, texts, spec)
        worst = _worst(found)
        if worst > tolerance:
            _LOG.warning(
                "On the golden photo, which is none of the images given, a graph is %.2g from "
                "float32 (relative L2; on those images at most %.2g), and %.1f %% of pixels keep "
                "their label. Other photos may fare so: give images of all kinds that it will see",
                worst,
                _worst(report.stages.values()),
                100 * pixels,
            )
        tolerance = max(tolerance, _GOLDEN_FACTOR * worst)
    else:  # one of those that the average is of
        pixels = _equal_labels(decision.outcomes[0], sample)
    (folder / "golden").mkdir()
    budget = max(usual.pixel_agreement, report.budget.pixel_agreement)
    least = min(budget, report.pixel_agreement, pixels)
    write_golden(
        folder / "golden",
        sample,
        categories=texts.plan.names,
        prompts=texts.plan.prompts,
        tokens=texts.tokens,
        text=texts.embeddings,
        stage_tolerance=tolerance,
        pixel_agreement=max(0.0, least - _GOLDEN_PIXELS - report.near_ties),
    )


def _equal_labels(outcome: Outcome, sample: Sample) -> float:
    """The share of pixels of an image to which the typed graphs give torch's label."""
    height, width = sample.image.shape[:2]
    got, want = (label_map(one.logits, height, width) for one in (outcome, sample.outcome))
    return float((got == want).mean())


def _worst(errors: Iterable[StageError]) -> float:
    """The largest error of a stage; no device can repeat a NaN."""
    return max(filter(math.isfinite, (error.relative_l2 for error in errors)), default=0.0)


def _on_golden(
    model: EscNet, built: Mapping[str, Built], sample: Sample, texts: Texts, spec: Preprocessing
) -> tuple[list[StageError], float]:
    """The error of each typed graph on the golden image, and the share of equal labels."""
    backend = open_backend(built)
    try:
        encoded = StageError()
        found = np.asarray(
            backend.to_host(backend.run("text_encoder", {"tokens": texts.tokens})["embeddings"]),
            np.float32,
        )
        encoded.add(found, texts.embeddings)
        graphs = [one.graph for name, one in built.items() if name != "text_encoder"]
        errors = [encoded, *(stage_error(backend, graph, [sample]) for graph in graphs)]
        text = assemble(texts.plan, found).embeddings if np.isfinite(found).all() else None
        compared = compare_pipelines(model, backend, [sample], spec=spec, text=text)
    finally:
        backend.close()
    return errors, _equal_labels(
        compared.outcomes[0], sample
    )  # at the image's own size, as on a device


def _manifest(
    model: EscNet,
    folder: Path,
    decision: Decision,
    weights: str,
    trained: bool,
    scenes: SceneSet,
) -> Manifest:
    config, report, precision = model.config, decision.report, decision.plan.base
    tokenizer = _reference(folder, "tokenizer.json")
    return Manifest(
        model=model_info(config, weights=weights, trained=trained),
        precision=precision,
        constants=constants_of(config),
        stages={name: _stage(folder, built) for name, built in decision.built.items()},
        tokenizer=TokenizerRef(**_fields(tokenizer), context_length=config.clip.context_length),
        golden=Golden(
            categories=scenes.categories,
            files=tuple(_reference(folder, f"golden/{name}") for name in GOLDEN_FILES),
        ),
        parity=Parity(
            passed=report.passed,
            gate=report.gate,
            allowed_failure=not report.passed,
            pixel_agreement=report.pixel_agreement,
            prompt_flips=report.prompt_flips,
            files=tuple(_reference(folder, name) for name in ("parity.json", "parity.html")),
        ),
        producer={
            "escnet": __version__,  # all distributions have one version
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "onnxruntime_minimum": max(
                _ORT_MINIMUM[built.arithmetic] for built in decision.built.values()
            ),
            "python": platform.python_version(),
        },
    )


def _reference(folder: Path, file: str) -> FileRef:
    path = folder / file
    return FileRef(file=file, sha256=sha256_file(path), bytes=path.stat().st_size)


def _fields(reference: FileRef) -> dict[str, Any]:
    return {"file": reference.file, "sha256": reference.sha256, "bytes": reference.bytes}


def _stage(folder: Path, built: Built) -> Stage:
    def spec(port: Port) -> TensorSpec:
        assert port.kind != "graph", "the graphs of a plan are typed"
        return TensorSpec(name=port.name, dtype=port.kind, shape=port.shape)

    graph = built.graph
    return Stage(
        **_fields(_reference(folder, f"graphs/{graph.name}.onnx")),
        precision=built.precision,
        inputs=tuple(spec(port) for port in graph.inputs),
        outputs=tuple(spec(port) for port in graph.outputs),
    )


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """``value`` with null in place of NaN and infinities, which JSON does not have."""
    match value:
        case Mapping():
            return {key: _finite(entry) for key, entry in value.items()}
        case list():
            return [_finite(entry) for entry in value]
        case float():
            return value if math.isfinite(value) else None
    return value
