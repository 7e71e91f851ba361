"""The golden run of a bundle: which photo it uses, and the tolerances for a device."""

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from escnet.model import EscNet
from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.tokenizer import Tokenizer
from escnet_runtime.vocabulary import assemble

from .decision import Decision
from .golden import write_golden
from .parity import Outcome, Sample, compare_pipelines, label_map, reference_sample, stage_error
from .report import Budget, StageError
from .scenes import SceneSet
from .tensors import TensorStore
from .texts import TEXT_ENCODER, Texts, texts_of
from .workshop import Built, open_backend

__all__ = ["write_golden_run"]

_LOG: Final = logging.getLogger("escnet_export")
#: The stages of a device's golden run may have errors this many times as large as those measured
#: stage by stage: errors add up along the run.
_GOLDEN_FACTOR: Final = 2.0
#: Share of the golden photo's labels that may differ on another machine, besides near-ties. Those
#: are decided by rounding, and are many with untrained weights.
_GOLDEN_PIXELS: Final = 0.02


def write_golden_run(
    model: EscNet,
    folder: Path,
    tokenizer: Tokenizer,
    scenes: SceneSet,
    sample: Sample | None,
    decision: Decision,
) -> None:
    """Write ``golden/`` of a bundle, with the tolerances for a device that repeats the run.

    A device cannot be nearer to float32 than the graphs are. Their errors on the photo are known if
    it is one of the images that the export has measured; otherwise they are measured here. A device
    may be off by twice the worst of them, and at least by the default budget of the precision. The
    user's budget does not count: a tighter one is about single stages, and a wider one about which
    bundles may be written, not about what a device may compute.

    Args:
        model: in float32.
        folder: of the bundle; its graphs are there.
        tokenizer: the bundle's.
        scenes: the photo is the first of their images; the categories are theirs.
        sample: the photo through float32 torch if the export has measured it, else None.
        decision: of the accuracy gate; with ``sample``, ``outcomes[0]`` belongs to the photo.
    """
    report, plan = decision.report, decision.plan
    usual = Budget.default(plan.base, plan.image_encoder)
    texts, spec = texts_of(model, tokenizer, scenes), model.config.preprocessing
    tolerance = max(usual.stage_l2, _GOLDEN_FACTOR * _worst(report.stages.values()))
    if sample is None:
        text = assemble(texts.plan, texts.embeddings).embeddings
        store = TensorStore(folder)
        sample = reference_sample(model, scenes.images[0], text, spec, store=store)
        found, pixels = _on_golden(model, decision.built, sample, texts, spec)
        worst = _worst(found)
        if worst > tolerance:
            _LOG.warning(
                "On the golden photo, which is not one of the images given, the worst graph has a "
                "relative L2 of %.2g to float32 (on the images given at most %.2g), and %.1f %% of "
                "pixels keep their label. Other photos may do as badly: give --images of every "
                "kind that the model will see",
                worst,
                _worst(report.stages.values()),
                100 * pixels,
            )
        tolerance = max(tolerance, _GOLDEN_FACTOR * worst)
    else:  # the photo is one of the images that the average is taken over
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
    """The share of an image's pixels that get the same label from typed graphs and torch."""
    height, width = sample.image.shape[:2]
    got, want = (label_map(one.logits, height, width) for one in (outcome, sample.outcome))
    return float((got == want).mean())


def _worst(errors: Iterable[StageError]) -> float:
    """The largest finite error of a stage: a device cannot repeat one that is not."""
    return max(filter(math.isfinite, (error.relative_l2 for error in errors)), default=0.0)


def _on_golden(
    model: EscNet, built: Mapping[str, Built], sample: Sample, texts: Texts, spec: Preprocessing
) -> tuple[list[StageError], float]:
    """The error of each typed graph on the golden image, and the share of equal labels."""
    backend = open_backend(built)
    try:
        encoded = StageError()
        found = np.asarray(
            backend.to_host(backend.run(TEXT_ENCODER, {"tokens": texts.tokens})["embeddings"]),
            np.float32,
        )
        encoded.add(found, texts.embeddings)
        graphs = [one.graph for name, one in built.items() if name != TEXT_ENCODER]
        errors = [encoded, *(stage_error(backend, graph, [sample]) for graph in graphs)]
        text = assemble(texts.plan, found).embeddings if np.isfinite(found).all() else None
        compared = compare_pipelines(model, backend, [sample], spec=spec, text=text)
    finally:
        backend.close()
    return errors, _equal_labels(
        compared.outcomes[0], sample
    )  # at the image's own size, as on a device
