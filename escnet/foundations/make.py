"""``make tiny``: from seeds to the checkpoint that ships, in one resumable run.

A folder a stage (``clip-64``, ``clip-128``, ``sam``, ``esc-net``, ...), each as the training loop
leaves it, with its part of the recipe, and ``tiny.safetensors`` with ``tiny.json`` (provenance) at
the end. Run again, it goes on where it stopped; a finished stage is not repeated.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file

from escnet.build import build_clip, build_model
from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet.presets import preset
from escnet.train.loop import LAST, train
from escnet.train.processes import bf16_is_slow
from escnet.train.segmentation import SegmentationTask
from escnet.train.settings import LoopSettings
from escnet.train.task import Task
from escnet.train.validate import correlation, validate
from escnet.weights import load_checkpoint, load_clip, load_sam, view_at
from escnet_runtime.atomic import atomic_file
from escnet_runtime.console import Console
from escnet_runtime.errors import InputError
from escnet_runtime.labelled import ShapesImages
from escnet_runtime.world import dataset

from .clip import ClipTask
from .provenance import provenance
from .recipe import TINY, ClipPhase, Recipe
from .sam import SamTask, build_sam
from .scenes import TrainingScenes
from .spatial import spatial_start

__all__ = ["CHECKPOINT", "PROVENANCE", "make_tiny"]

CHECKPOINT: Final = "tiny.safetensors"
PROVENANCE: Final = "tiny.json"
_STAGE: Final = "stage.json"
_BEGUN: Final = "recipe.json"
#: Scenes that the run itself validates on; the figures that are published are escnet-eval's, of
#: other scenes.
_VALIDATION: Final = "shapes:heldout:900"
_VALIDATION_SCENES: Final = 24
_CORRELATION_SCENES: Final = 72  # no block is computed: these cost less
_MOST_WORKERS: Final = 14
#: So far apart do the phases begin, so that none shows a scene of another.
_SCENES_OF_A_PHASE: Final = 1 << 20
_WEIGHTS: Final = "trained in the small world of escnet from seed {seed}"


def make_tiny(folder: Path, *, recipe: Recipe = TINY, console: Console) -> Path:
    """Train all stages in ``folder`` and write the checkpoint there; returns its path.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; run it again to go on.
        InputError: a stage in ``folder`` was begun by another recipe.
    """
    config = preset("tiny")
    provenance()
    start: Path | None = None
    for phase in recipe.clip:
        start = _clip_stage(folder / phase.name, config, recipe, phase, start, console)
    assert start is not None
    sam = _sam_stage(folder / "sam", config, recipe, console)
    first = functools.partial(_foundations, config, recipe.seed, clip=start, sam=sam)
    begin: Callable[[], EscNet] = first
    for number, part in enumerate(recipe.escnet):
        last = _escnet_stage(folder / part.name, recipe, number, begin, console)
        begin = functools.partial(_continued, last)
    return _write(folder, config, recipe, last)


def _foundations(config: EscNetConfig, seed: int, *, clip: Path, sam: Path) -> EscNet:
    model = build_model(config, seed=seed)
    load_clip(model, str(clip))
    load_sam(model, sam)
    return model


def _continued(checkpoint: Path) -> EscNet:
    return load_checkpoint(checkpoint).model


def _clip_stage(
    folder: Path,
    config: EscNetConfig,
    recipe: Recipe,
    phase: ClipPhase,
    start: Path | None,
    console: Console,
) -> Path:
    def task() -> Task:
        clip: CLIP = _seeded(recipe.seed, lambda: _untrained_clip(config))
        if start is not None:
            clip.load_state_dict(load_file(start))
        return ClipTask(
            config,
            clip,
            phase.pool,
            rates=phase.rates,
            seed=recipe.seed,
            processes=os.cpu_count() or 1,
            validation=_validate_correlation,
            console=console,
        )

    _begin(folder, recipe, **dataclasses.asdict(phase))
    return _stage(folder, task, phase.loop, console)


def _untrained_clip(config: EscNetConfig) -> CLIP:
    clip = build_clip(config)
    spatial_start(cast(VisionTransformer, clip.visual), config.grid)
    return clip


def _sam_stage(folder: Path, config: EscNetConfig, recipe: Recipe, console: Console) -> Path:
    def task() -> Task:
        sam = _seeded(recipe.seed, lambda: build_sam(config))
        return SamTask(config, sam, rate=recipe.sam_rate, seed=recipe.seed)

    _begin(folder, recipe, rate=recipe.sam_rate, loop=dataclasses.asdict(recipe.sam))
    return _stage(folder, task, recipe.sam, console)


def _escnet_stage(
    folder: Path,
    recipe: Recipe,
    number: int,
    begin: Callable[[], EscNet],
    console: Console,
) -> Path:
    """``begin`` makes the model that the stage starts from."""
    phase = recipe.escnet[number]

    def task() -> Task:
        return SegmentationTask(
            begin(),
            TrainingScenes(
                first=number * _SCENES_OF_A_PHASE,
                sizes=phase.sizes,
                objects=phase.objects,
                drawn=phase.drawn,
                augmentation=phase.augmentation,
            ),
            dataset("shapes:train").classes,
            rates=phase.rates,
            categories=phase.categories,
            loss=phase.loss,
            seed=recipe.seed,
            validation=functools.partial(_validate, size=max(phase.sizes)),
            weights=_WEIGHTS.format(seed=recipe.seed),
        )

    _begin(folder, recipe, **dataclasses.asdict(phase))
    return _stage(folder, task, phase.loop, console)


def _begin(folder: Path, recipe: Recipe, **part: Any) -> None:
    """Note in a stage's folder the part of the recipe that it is made by, or compare it.

    Recipes share stages: ``tiny-192`` goes on where ``tiny`` ended. Others of one name differ.
    """
    note = folder / _BEGUN
    made: dict[str, Any] = json.loads(json.dumps({"seed": recipe.seed, **part}))
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(note) as temporary:
            temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(note.read_text(encoding="utf-8"))
    other = sorted(key for key in {*before, *made} if before.get(key) != made.get(key))
    if other:
        raise InputError(
            f"{folder} was begun by another recipe than {recipe.name}: it has another "
            f"{', '.join(other)}. Go on with the recipe it was begun by (--recipe), or name "
            "another folder"
        )


def _workers() -> int:
    """Processes that prepare batches: two cores are better left to the training itself."""
    return max(0, min(_MOST_WORKERS, (os.cpu_count() or 1) - 2))


def _stage(folder: Path, task: Callable[[], Task], loop: LoopSettings, console: Console) -> Path:
    """Train a stage unless it is finished; returns its last weights."""
    note = folder / _STAGE
    if not note.is_file():
        begun = provenance()
        precision = "no" if loop.precision == "bf16" and bf16_is_slow() else loop.precision
        loop = dataclasses.replace(loop, workers=_workers(), precision=precision)
        outcome = train(task(), loop, folder, resume=True, console=console)
        entry = {
            **begun,
            "settings": dataclasses.asdict(loop),
            "seconds": round(outcome.seconds),
            "figures": dict(outcome.figures),
        }
        with atomic_file(note) as temporary:
            temporary.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    return folder / LAST


def _write(folder: Path, config: EscNetConfig, recipe: Recipe, last: Path) -> Path:
    """The checkpoint of the last step (none is chosen by its score) and its provenance."""
    with atomic_file(folder / CHECKPOINT) as temporary:
        shutil.copyfile(last, temporary)
    clip, escnet = ([phase.name for phase in phases] for phases in (recipe.clip, recipe.escnet))
    stages = {
        name: json.loads((folder / name / _STAGE).read_text(encoding="utf-8"))
        for name in (*clip, "sam", *escnet)
    }
    document = {
        "model": config.name,
        "command": f'make tiny ARGS="--recipe {recipe.name}"',
        "recipe": dataclasses.asdict(recipe),
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
    }
    with atomic_file(folder / PROVENANCE) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return folder / CHECKPOINT


def _validate(model: EscNet, check: Callable[[], None], *, size: int) -> Mapping[str, float]:
    """At the size, px a side, that the phase is for, which need not be the model's own."""
    return validate(view_at(model, size), _validation_images(_VALIDATION_SCENES), check=check)


def _validate_correlation(model: EscNet, check: Callable[[], None]) -> Mapping[str, float]:
    images = _validation_images(_CORRELATION_SCENES)
    return validate(model, images, predict=correlation, check=check)


def _validation_images(count: int) -> ShapesImages:
    """Scenes as escnet-eval draws them, whatever the size of the model's image."""
    return ShapesImages(scenes=dataset(_VALIDATION, length=count))


def _seeded(seed: int, make: Callable[[], Any]) -> Any:
    """What ``make`` makes from random numbers of the seed; the caller's are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()
