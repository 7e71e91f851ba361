"""From a configuration to a task: the data, the model with its first weights, the validation."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet.presets import preset
from escnet.weights import LoadedCheckpoint, load_checkpoint, load_preset, resized
from escnet_runtime.confusion import ConfusionCounter
from escnet_runtime.console import Console
from escnet_runtime.labelled import absent_warning, dataset_name

from .check import check_files, require_classes, require_labelled
from .config import ModelSection, TrainConfig
from .data import LabelledSource, TrainingSamples, open_source
from .fingerprint import DataFingerprint
from .segmentation import SegmentationTask
from .validate import Validation, validate

__all__ = ["Start", "prepared"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The task of a run, and the fingerprints of its data sets by the configuration's keys."""

    task: SegmentationTask
    data: Mapping[str, DataFingerprint]


def prepared(config: TrainConfig, *, console: Console) -> Start:
    """What the configuration trains, after a look at each of its files.

    Raises:
        InputError: a file of weights or a data set is missing, or does not fit.
    """
    data, seed = config.data, config.training.seed
    given = config.model.checkpoint
    start = None if given is None else load_checkpoint(Path(given))
    sizes = preset(config.model.preset or "") if start is None else start.model.config
    if config.model.image_size is not None:
        sizes = sizes.at_size(config.model.image_size)
    size = sizes.clip.image_size
    images = open_source(data.train, size=size, limit=data.limit)
    require_classes(images, f"data.train ({data.train})")
    sources = {"data.train": images}
    validation: Validation | None = None
    if data.validation is not None:
        held_out = open_source(data.validation, limit=data.validation_limit)
        sources["data.validation"] = held_out
        validation = _validation(held_out)
    # A mistake in the data should not wait for gigabytes of weights, nor for the epoch's end.
    check_files(sources.values(), console=console)
    require_labelled(images, f"data.train ({data.train})", "label some")
    if "data.validation" in sources:
        require_labelled(
            sources["data.validation"],
            f"data.validation ({data.validation})",
            "label some, or leave data.validation out",
        )
    start = resized(start, size) if start is not None else _of_preset(config.model, sizes)
    task = SegmentationTask(
        start.model,
        TrainingSamples(images, size=size, augmentation=config.augmentation, seed=seed),
        images.names,
        rates=config.rates,
        categories=config.categories,
        seed=seed,
        checkpoint_activations=config.training.checkpoint_activations,
        loss=config.loss,
        validation=validation,
        weights=f"{start.weights}, then trained on {dataset_name(data.train)}",
    )
    fingerprints = {key: DataFingerprint.of(source) for key, source in sources.items()}
    return Start(task=task, data=fingerprints)


def _validation(images: LabelledSource) -> Validation:
    said: set[str] = set()

    def warn(counter: ConfusionCounter) -> None:
        warning = absent_warning(images, counter)
        if warning is not None and warning not in said:  # once a run, not once a validation
            said.add(warning)
            _LOG.warning("%s", warning)

    def measure(model: EscNet, check: Callable[[], None]) -> Mapping[str, float]:
        return validate(model, images, check=check, counted=warn)

    return measure


def _of_preset(section: ModelSection, sizes: EscNetConfig) -> LoadedCheckpoint:
    """Its trained weights, if some ship and no others are given, or CLIP's and SAM's."""
    sam = None if section.sam is None else Path(section.sam)
    start = load_preset(sizes, clip=section.clip, sam=sam, seed=section.seed)
    if not start.trained and section.clip is None:
        _LOG.warning("no model.clip: CLIP starts from random weights, and is mostly frozen")
    if not start.trained and section.sam is None:
        _LOG.warning("no model.sam: the SAM blocks start from random weights")
    return start
