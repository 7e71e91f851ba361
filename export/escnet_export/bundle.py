"""From a model to a bundle: export, check, measure, and only then put it in its place."""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from escnet.model import EscNet
from escnet.tokenizer import write_tokenizer
from escnet_runtime import __version__
from escnet_runtime.atomic import atomic_directory
from escnet_runtime.backends import Backend, GraphFile, create_backend
from escnet_runtime.bundle import sha256_file
from escnet_runtime.errors import InputError
from escnet_runtime.groups import GROUP
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import (
    Constants,
    DType,
    FileRef,
    Golden,
    Manifest,
    ModelInfo,
    Parity,
    Postprocessing,
    Precision,
    Stage,
    TensorSpec,
    TokenizerRef,
)
from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.tokenizer import Tokenizer
from escnet_runtime.vocabulary import TextPlan, assemble, plan_texts

from .check import CATEGORIES, GraphCheck
from .errors import ParityError
from .export import GraphExporter
from .golden import GOLDEN_FILES, write_golden
from .graphs import Graph, Port, model_graphs
from .page import ParityPicture, parity_page
from .parity import (
    Budget,
    Outcome,
    ParityReport,
    Sample,
    label_map,
    measure_parity,
    reference_sample,
)
from .precision import cast_model
from .scenes import SceneSet, default_scenes

__all__ = ["ExportReport", "export_bundle"]

#: Categories a chunk on the CPU: measured for vit-b-16, benchmarks/results.
_CHUNK: Final = 16
#: The oldest ONNX Runtime that reads the opset and IR version we write.
_ORT_MINIMUM: Final = {Precision.FP32: "1.18", Precision.FP16: "1.18", Precision.BF16: "1.20"}
#: Images shown in parity.html.
_PICTURES: Final = 4
#: Errors of a device's golden run may be this many times those of the stages measured one by one:
#: it runs through all stages, so errors add up.
_GOLDEN_FACTOR: Final = 2.0

Step = Callable[[str], None]
_TYPES: Final[dict[str, DType]] = {
    "float32": "float32",
    "int32": "int32",
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
}


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
    budget: Budget | None = None,
    allow_parity_failure: bool = False,
    check_categories: Sequence[int] = CATEGORIES,
    step: Step = lambda _: None,
) -> ExportReport:
    """Export ``model`` as a bundle at ``output``; nothing is there before all of it is right.

    Args:
        model: in float32.
        output: a folder that does not exist, is empty, or is a bundle, which is then replaced.
        precision: fp32, fp16 or bf16.
        weights: where the weights come from, for people.
        trained: decides the gate, see :class:`Budget`.
        images: for measuring parity; the package's own scenes by default.
        budget: what may be lost; :meth:`Budget.default` by default.
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
    budget = budget or Budget.default(precision)
    if images is not None and not images:
        raise InputError("there is no image to measure parity on; expected at least one")
    with atomic_directory(output) as folder:
        checks = _write_graphs(model, folder, precision, check_categories, step)
        step("tokenizer")
        context = model.config.clip.context_length
        write_tokenizer(
            folder / "tokenizer.json",
            vocab_size=model.config.clip.vocab_size,
            context_length=context,
        )
        scenes = default_scenes(model.config)
        report, pictures = _measure(
            model, folder, precision, trained, images, scenes, budget, allow_parity_failure, step
        )
        data = {
            **report.to_dict(),
            "model": model.config.name,
            "precision": precision.value,
            "trained": trained,
            "reason": report.reason(),
        }
        (folder / "parity.json").write_text(_json(data), encoding="utf-8")
        (folder / "parity.html").write_text(parity_page(data, pictures), encoding="utf-8")
        step("manifest")
        manifest = _manifest(model, folder, precision, weights, trained, report, scenes)
        (folder / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return ExportReport(
        bundle=output,
        precision=precision,
        seconds=time.perf_counter() - start,
        parity=report,
        checks=checks,
    )


def _write_graphs(
    model: EscNet, folder: Path, precision: Precision, categories: Sequence[int], step: Step
) -> dict[str, dict[int, float]]:
    (folder / "graphs").mkdir()
    references = model_graphs(model)
    check = GraphCheck(model.config, precision, categories=categories)
    exporter = GraphExporter(model.config, precision)
    found = {}
    for graph, reference in zip(
        model_graphs(cast_model(model, precision)), references, strict=True
    ):
        path = folder / "graphs" / f"{graph.name}.onnx"
        step(f"export {graph.name}")
        exporter.export(graph, path)
        step(f"check {graph.name}")
        found[graph.name] = check.check(reference, path)
    return found


def _measure(
    model: EscNet,
    folder: Path,
    precision: Precision,
    trained: bool,
    images: Sequence[ImageArray] | None,
    scenes: SceneSet,
    budget: Budget,
    allow_failure: bool,
    step: Step,
) -> tuple[ParityReport, list[ParityPicture]]:
    """Measure parity and write the golden run; raise if the budget is missed."""
    tokenizer = Tokenizer.open(folder / "tokenizer.json", model.config.clip.context_length)
    plan = plan_texts(scenes.categories, model.config.templates)
    tokens = tokenizer.encode(plan.prompts, cleaned=True)
    with torch.inference_mode():
        prompt_embeddings = model.encode_text(torch.from_numpy(tokens)).numpy()
    text = assemble(plan, prompt_embeddings).embeddings
    spec = _preprocessing(model)
    golden = scenes.images[0]
    samples = []
    if images is None:
        images = scenes.images
    for index, image in enumerate(images):
        step(f"torch, image {index + 1}")
        samples.append(reference_sample(model, image, text, spec))
    backend = _backend(model, folder, precision)
    try:
        report, outcomes = measure_parity(
            model,
            backend,
            samples,
            precision=precision,
            spec=spec,
            trained=trained,
            budget=budget,
            progress=lambda: step("parity"),
        )
        # The text encoder runs once a vocabulary, not once an image.
        encoded = backend.run("text_encoder", {"tokens": tokens})["embeddings"]
        report.add_stage("text_encoder", backend.to_host(encoded), prompt_embeddings)
        if not report.passed and not allow_failure:
            raise ParityError(
                f"{report.reason()}; nothing was written. Use a higher precision, a wider budget "
                "(--min-pixel-agreement, --max-stage-l2), or --allow-parity-failure"
            )
    finally:
        backend.close()
    step("golden run")
    first = samples[0] if images[0] is golden else reference_sample(model, golden, text, spec)
    _write_golden(folder, first, plan, tokens, prompt_embeddings, report)
    pairs = zip(samples[:_PICTURES], outcomes, strict=False)
    names = scenes.categories
    return report, [_picture(sample, outcome, spec, names) for sample, outcome in pairs]


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


def _backend(model: EscNet, folder: Path, precision: Precision) -> Backend:
    files = {
        graph.name: GraphFile(folder / "graphs" / f"{graph.name}.onnx", precision)
        for graph in model_graphs(model)
    }
    return create_backend(files, "onnxruntime")


def _write_golden(
    folder: Path,
    sample: Sample,
    plan: TextPlan,
    tokens: npt.NDArray[np.int32],
    text: npt.NDArray[np.float32],
    report: ParityReport,
) -> None:
    (folder / "golden").mkdir()
    errors = [error.relative_l2 for error in report.stages.values()]
    worst = max(filter(math.isfinite, errors), default=0.0)  # no device can repeat a NaN
    write_golden(
        folder / "golden",
        sample,
        categories=plan.names,
        prompts=plan.prompts,
        tokens=tokens,
        text=text,
        stage_tolerance=max(report.budget.stage_l2, _GOLDEN_FACTOR * worst),
        pixel_agreement=min(report.budget.pixel_agreement, report.pixel_agreement) - 0.02,
    )


def _manifest(
    model: EscNet,
    folder: Path,
    precision: Precision,
    weights: str,
    trained: bool,
    report: ParityReport,
    scenes: SceneSet,
) -> Manifest:
    config = model.config
    tokenizer = _reference(folder, "tokenizer.json")
    return Manifest(
        model=ModelInfo(
            name=config.name,
            trained=trained,
            weights=weights,
            image_size=config.clip.image_size,
            grid=(config.grid, config.grid),
            logits=(config.logits, config.logits),
            embed_dim=config.clip.embed_dim,
            hidden_dim=config.fusion.hidden_dim,
            sam_dim=config.sam.embed_dim,
            blocks=config.blocks,
        ),
        precision=precision,
        constants=_constants(model),
        stages={graph.name: _stage(folder, graph, precision) for graph in model_graphs(model)},
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
            "onnxruntime_minimum": _ORT_MINIMUM[precision],
            "python": platform.python_version(),
        },
    )


def _constants(model: EscNet) -> Constants:
    config = model.config
    return Constants(
        ppg=config.ppg,
        preprocessing=_preprocessing(model),
        postprocessing=Postprocessing(resize="bilinear", align_corners=False, confidence="softmax"),
        templates=config.templates,
        chunk=_CHUNK,
        group=GROUP,
    )


def _preprocessing(model: EscNet) -> Preprocessing:
    config = model.config
    return Preprocessing(size=config.clip.image_size, mean=config.image_mean, std=config.image_std)


def _reference(folder: Path, file: str) -> FileRef:
    path = folder / file
    return FileRef(file=file, sha256=sha256_file(path), bytes=path.stat().st_size)


def _fields(reference: FileRef) -> dict[str, Any]:
    return {"file": reference.file, "sha256": reference.sha256, "bytes": reference.bytes}


def _stage(folder: Path, graph: Graph, precision: Precision) -> Stage:
    def spec(port: Port) -> TensorSpec:
        kind = precision if port.kind == "graph" else port.kind
        return TensorSpec(name=port.name, dtype=_TYPES[kind], shape=port.shape)

    return Stage(
        **_fields(_reference(folder, f"graphs/{graph.name}.onnx")),
        precision=precision,
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
