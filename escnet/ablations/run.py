"""Training and measuring variants, one folder a variant and seed; what is finished stays.

::

    conditions.json           what all runs in the folder have in common
    VARIANT/seed-N/           a run, as escnet.train.loop leaves it
    VARIANT/seed-N/result.json
    results.jsonl             all results so far, a line each
    table.md, table.png       what they say

Every variant starts from the same CLIP and SAM and, for one seed, sees the same scenes with the
same categories in the same order. A seed stands for other initial weights of what is not
pre-trained, other scenes and other categories; not for another CLIP or SAM.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from escnet.build import build_model
from escnet.foundations.provenance import provenance
from escnet.foundations.recipe import TINY
from escnet.foundations.scenes import TrainingScenes
from escnet.model import EscNet
from escnet.presets import preset
from escnet.train.categories import CategorySampling
from escnet.train.folder import RunFolder
from escnet.train.groups import Rates
from escnet.train.loop import LAST, train
from escnet.train.loss import LossWeights
from escnet.train.segmentation import SegmentationTask
from escnet.train.settings import LoopSettings
from escnet.train.validate import Predict, correlation, validate
from escnet.weights import load_clip, load_sam
from escnet_runtime.atomic import atomic_file
from escnet_runtime.bundle import sha256_file
from escnet_runtime.console import Console
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import ShapesImages
from escnet_runtime.world import WORLD_VERSION, dataset

from .variants import BASE, CORRELATION, VARIANTS, Variant, changed

__all__ = ["Budget", "Foundations", "Result", "read_results", "run_ablations"]

_RESULT: Final = "result.json"
_CONDITIONS: Final = "conditions.json"
RESULTS: Final = "results.jsonl"
#: So far apart do the seeds' training scenes begin, and so far from those of ``tiny`` itself.
_SCENES_OF_A_SEED: Final = 1 << 24

_CATEGORIES: Final = CategorySampling(per_image=16, hard=0.6, wide_every=4, wide=128)

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundations:
    """The weights that every variant starts from: files of a CLIP and of a SAM."""

    clip: Path
    sam: Path

    @classmethod
    def of(cls, folder: Path) -> "Foundations":
        """Those of a folder that ``make tiny`` left.

        Raises:
            InputError: it has none.
        """
        found = cls(clip=folder / TINY.clip[-1].name / LAST, sam=folder / "sam" / LAST)
        for path in (found.clip, found.sam):
            if not path.is_file():
                raise InputError(
                    f"{path} is not there; expected the folder that `make tiny` trains in, with "
                    "both foundations finished"
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long each variant is trained, and what it is measured on; docs/ablations.md has the sum.

    Attributes:
        steps: optimiser steps of ``batch`` images.
        batch: images of a step.
        scenes: the set that figures are of. Not the one whose figures are published: if τ or α is
            ever chosen by this table, those stay figures of scenes that nothing was chosen by.
        count: how many of its scenes; each with all names of the set as categories.
        rates: learning rates, those of ``tiny``'s main phase.
        categories: which an image is trained with: as in ``tiny``'s training, few, and in some
            images nearly as many as are measured with.
        loss: weights of the losses, those of ``tiny``'s main phase.
    """

    steps: int = 240
    batch: int = 4
    scenes: str = "shapes:heldout:901"
    count: int = 48
    rates: Rates = TINY.escnet[0].rates
    categories: CategorySampling = _CATEGORIES
    loss: LossWeights = TINY.escnet[0].loss

    @property
    def loop(self) -> LoopSettings:
        """A warm-up of a tenth, then half a cosine to 0; saved every 20 steps."""
        return LoopSettings(
            steps=self.steps,
            batch=self.batch,
            warmup=self.steps // 10,
            log_every=10,
            save_every=20,
        )


def run_ablations(
    foundations: Foundations,
    output: Path,
    *,
    variants: Sequence[Variant] = VARIANTS,
    seeds: Sequence[int] = (0, 1),
    budget: Budget | None = None,
    console: Console,
) -> Iterator[list[Result]]:
    """Make the missing results, seed after seed; gives all results there are, first and after each.

    Raises:
        InputError: ``output`` holds runs under other conditions, or a foundation does not fit.
        Stopped: SIGTERM or Ctrl-C came; run it again to go on.
    """
    budget = budget or Budget()
    conditions = _conditions(foundations, budget)
    _require_same(output / _CONDITIONS, conditions)
    provenance()  # of the code as it is now
    yield read_results(output)
    runs = [(variant, seed) for seed in seeds for variant in variants]
    # There is nothing to seed in the correlation.
    runs = [run for run in runs if run[0].name != CORRELATION or run[1] == seeds[0]]
    for variant, seed in runs:
        trained = variant.name != CORRELATION
        folder = output / variant.name / (f"seed-{seed}" if trained else "")
        if not (folder / _RESULT).is_file():
            if trained:
                entry = _trained(variant, seed, foundations, budget, folder, console)
            else:
                entry = _correlation(foundations, budget, console)
            line = {**_described(variant, seed), **entry, "conditions": conditions}
            _write(folder / _RESULT, json.dumps(line, indent=2) + "\n")
            results = read_results(output)
            _write(output / RESULTS, "".join(json.dumps(one) + "\n" for one in results))
            yield results
        # Nobody resumes a finished run, and the optimiser's state is two thirds of its size.
        RunFolder(folder).state.unlink(missing_ok=True)


def read_results(output: Path) -> list[Result]:
    """All results in a folder, in the order of the table and the seeds."""
    results: list[Result] = []
    for variant in VARIANTS:
        found = [json.loads(path.read_text()) for path in (output / variant.name).rglob(_RESULT)]
        results += sorted(found, key=lambda one: one["seed"] or 0)
    return results


def _trained(
    variant: Variant,
    seed: int,
    foundations: Foundations,
    budget: Budget,
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Train one variant and measure it."""
    console.print(f"{variant.name}, seed {seed}")
    model = _model(variant, seed, foundations)
    size = model.config.clip.image_size
    # The scenes of seed 0 lie behind those that any phase of tiny shows.
    task = SegmentationTask(
        model,
        TrainingScenes(first=(1 + seed) * _SCENES_OF_A_SEED, sizes=(size,)),
        dataset("shapes:train").classes,
        rates=budget.rates,
        categories=budget.categories,
        loss=budget.loss,
        seed=seed,
        weights=f"ablation {variant.name}, seed {seed}",
    )
    begun = provenance()
    outcome = train(task, budget.loop, folder, resume=True, console=console)
    model.eval()
    start = time.perf_counter()
    figures = _figures(model, budget, console)
    return {
        "figures": figures,
        "training_seconds": round(outcome.seconds, 1),
        "evaluation_seconds": round(time.perf_counter() - start, 1),
        "trained_parameters": sum(
            one.numel() for group in task.groups for one in group.parameters.values()
        ),
        "provenance": begun,
    }


def _correlation(foundations: Foundations, budget: Budget, console: Console) -> dict[str, Any]:
    """Measure the CLIP that every variant starts from."""
    console.print("CLIP's correlation")
    model, start = _model(BASE, 0, foundations), time.perf_counter()
    figures = _figures(model, budget, console, alone=True)
    return {
        "figures": figures,
        "training_seconds": None,
        "evaluation_seconds": round(time.perf_counter() - start, 1),
        "trained_parameters": 0,
        "provenance": provenance(),
    }


def _model(variant: Variant, seed: int, foundations: Foundations) -> EscNet:
    model = build_model(changed(preset("tiny"), variant.change), seed=seed)
    load_clip(model, str(foundations.clip))
    if variant.sam_weights and model.esc_blocks:
        load_sam(model, foundations.sam)
    return model


def _figures(
    model: EscNet, budget: Budget, console: Console, *, alone: bool = False
) -> Mapping[str, float]:
    size = model.config.clip.image_size
    scenes = ShapesImages(scenes=dataset(budget.scenes, length=budget.count, size=size))
    with console.progress("measure", len(scenes)) as advance:
        predict: Predict = correlation if alone else EscNet.forward
        figures = validate(model, scenes, predict=predict, progress=advance)
    return {name: round(value, 6) for name, value in figures.items()}


def _described(variant: Variant, seed: int) -> dict[str, Any]:
    return {
        "variant": variant.name,
        "part": variant.part,
        "change": dict(variant.change),
        "sam_weights": variant.sam_weights,
        "seed": None if variant.name == CORRELATION else seed,
    }


def _conditions(foundations: Foundations, budget: Budget) -> dict[str, Any]:
    """What figures of two runs must have in common to stand in one table, as JSON gives it back."""
    conditions = {
        "base": preset("tiny").to_dict(),
        "budget": dataclasses.asdict(budget),
        "loop": dataclasses.asdict(budget.loop),
        "world": WORLD_VERSION,
        "names": len(dataset(budget.scenes).classes),
        "clip_sha256": sha256_file(foundations.clip),
        "sam_sha256": sha256_file(foundations.sam),
    }
    plain: dict[str, Any] = json.loads(json.dumps(conditions))
    return plain


def _require_same(path: Path, conditions: Mapping[str, Any]) -> None:
    """Write the conditions, or compare them with those that are there."""
    if not path.is_file():
        _write(path, json.dumps(conditions, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    other = [key for key in conditions if before.get(key) != conditions[key]]
    if other:
        raise InputError(
            f"{path.parent} holds runs with another {', '.join(other)}, and one table compares "
            "like with like; name another folder, or go on as it was begun"
        )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
