"""From a model to a bundle: export, check, measure, and only then move it into place."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from escnet.config import ClipConfig
from escnet.model import EscNet
from escnet.tokenizer import write_tokenizer
from escnet_runtime.atomic import atomic_directory
from escnet_runtime.confusion import Labels, ignore_index
from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.tokenizer import Tokenizer
from escnet_runtime.vocabulary import TextPlan, assemble

from .calibrate import Calibration
from .check import CATEGORIES
from .errors import ParityError
from .gate import AccuracyGate
from .golden_run import write_golden_run
from .manifest import write_manifest
from .parity import Sample, reference_sample
from .parity_files import write_parity
from .plan import PrecisionPlan
from .report import Budget, ParityReport
from .scenes import SceneSet, default_scenes
from .tensors import TensorStore
from .texts import Texts, inputs_of, texts_of
from .workshop import Step, Workshop

__all__ = ["ExportReport", "export_bundle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        bundle: its folder.
        precision: as asked for; ``parity`` lists the blocks that were raised above it.
        seconds: duration of the whole export.
        parity: how far the bundle is from float32 torch, and what the accuracy gate did about it.
        checks: graph → number of categories → relative L2 to float32 torch on made-up inputs.
    """

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
    """Export ``model`` as a bundle; ``output`` appears whole, after all checks, or not at all.

    Where the precision costs more than the budget, the accuracy gate raises blocks until it holds
    (:mod:`escnet_export.gate`); the report names them.

    Args:
        model: cast to float32 in place, and left in evaluation mode with gradients off.
        output: a folder that does not exist, is empty, or is a bundle, which is then replaced.
        precision: of all graphs, unless ``image_encoder`` or the gate gives one another.
        weights: where the weights come from, as a text for people.
        trained: whether the weights are trained; selects the gate, see :class:`Budget`.
        images: images to measure on, with the package's own categories.
        scenes: images to measure on with their own categories and, if known, labels; used instead
            of ``images``. Without either, the package's own scenes are used.
        budget: what may be lost; :meth:`Budget.default` by default.
        image_encoder: precision of the image encoder, if it differs.
        rest: with int8 and fp8, the type of everything that is not quantised: fp16 or fp32.
        calibration: with int8 and fp8, how a tensor's range is derived from its values on the
            images; by default :meth:`Calibration.default`.
        raise_blocks: False leaves every block at its precision, even if the budget is missed.
        allow_parity_failure: write the bundle even if the budget is missed, and record that in it.
        check_categories: numbers of categories at which each graph is checked.
        step: called with the name of each step as it begins, for showing progress.

    Raises:
        ExportError: a graph fails to export or does not compute what torch computes.
        ParityError: the budget is missed.
        InputError: there is no image, or ``output`` cannot be written or is not a bundle.
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
        tokenizer = _tokenizer(folder, model.config.clip)
        spec = model.config.preprocessing
        texts = texts_of(model, tokenizer, measured)
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
        write_golden_run(model, folder, tokenizer, golden, first, decision)
        said = {"model": model.config.name, "precision": precision.value, "trained": trained}
        figures = {**report.to_dict(), **said, "reason": report.reason()}
        write_parity(folder, figures, samples, decision.outcomes, texts, spec)
        step("manifest")
        write_manifest(
            folder,
            model.config,
            decision,
            weights=weights,
            trained=trained,
            categories=golden.categories,
        )
    return ExportReport(
        bundle=output,
        precision=precision,
        seconds=time.perf_counter() - start,
        parity=report,
        checks={name: built.checks for name, built in decision.built.items()},
    )


def _tokenizer(folder: Path, clip: ClipConfig) -> Tokenizer:
    """Write the bundle's tokenizer, and open it."""
    path = folder / "tokenizer.json"
    write_tokenizer(path, vocab_size=clip.vocab_size, context_length=clip.context_length)
    return Tokenizer.open(path, clip.context_length)


def _photos(images: Sequence[ImageArray], scenes: SceneSet) -> SceneSet:
    """The user's images, with the categories of ``scenes``."""
    return SceneSet(images=tuple(images), categories=scenes.categories)


def _samples(
    model: EscNet,
    scenes: SceneSet,
    texts: Texts,
    spec: Preprocessing,
    store: TensorStore,
    step: Step,
) -> list[Sample]:
    """Run all images through float32 torch."""
    text = assemble(texts.plan, texts.embeddings).embeddings
    samples = []
    for index, image in enumerate(scenes.images):
        step(f"torch, image {index + 1}")
        labels = _rows(scenes.labels[index], texts.plan) if scenes.labels else None
        samples.append(reference_sample(model, image, text, spec, labels, store=store))
    return samples


def _rows(labels: Labels, plan: TextPlan) -> Labels:
    """Labels as rows of the logits; a category that repeats an earlier one has no row: ignored."""
    if len(plan.label_of) == len(plan.names):
        return labels
    row_of = {int(label): row for row, label in enumerate(plan.label_of)}
    ignored = ignore_index(labels)
    table = np.full(int(ignored) + 1, ignored, labels.dtype)
    for label, row in row_of.items():
        table[label] = row
    rows: Labels = table[labels]
    return rows


def _missed(report: ParityReport, raise_blocks: bool) -> str:
    kept = ", ".join(kept.block for kept in report.kept_higher)
    done = f", with {kept} kept higher" if kept else ""
    hint = "" if raise_blocks else "let the accuracy gate raise blocks (without --no-raise), "
    return (
        f"{report.reason()}{done}; nothing was written. To have a bundle, {hint}use a higher "
        "precision, a wider budget (--min-pixel-agreement, --max-prompt-flips, --max-miou-loss, "
        "--max-stage-l2), or --allow-parity-failure"
    )
