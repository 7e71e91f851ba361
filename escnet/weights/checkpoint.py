"""This project's checkpoints: safetensors, with the configuration as JSON in the metadata."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from escnet.build import build_model
from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet_runtime.errors import InputError
from escnet_runtime.strict_json import parse_object

from .files import no_safetensors, require_file, write_tensors
from .state import WeightsError, copy_into, fitted

__all__ = ["LoadedCheckpoint", "load_checkpoint", "save_checkpoint"]

_SUFFIX: Final = ".safetensors"
_EXPECTED: Final = (
    f"A checkpoint is a {_SUFFIX} of escnet-train, such as last{_SUFFIX}; weights of CLIP or SAM "
    "alone are loaded into a model of a preset."
)
_KEY: Final = "escnet"  # of the metadata, whose values can only be strings
_FORMAT: Final = 1
_FIELDS: Final = {"format": int, "configuration": dict, "trained": bool, "weights": str}


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedCheckpoint:
    """A model in evaluation mode, and what its file says of the weights.

    ``trained``: whether the whole model was trained; ``weights``: where they come from, in a
    sentence for people.
    """

    model: EscNet
    trained: bool
    weights: str


def save_checkpoint(model: EscNet, path: Path, *, trained: bool, weights: str) -> None:
    """Write a checkpoint, whole or not at all, in the model's own number formats.

    Args:
        model: its configuration goes with it.
        path: ends in ``.safetensors``; replaced if it exists.
        trained: whether the whole model was trained.
        weights: where the weights come from, in a sentence for people.

    Raises:
        WeightsError: the name has another suffix, or a weight is NaN or infinite.
        InputError: the place is not writable.
    """
    if path.suffix != _SUFFIX:
        raise WeightsError(f"A checkpoint's name ends in {_SUFFIX}, got {path.name!r}.")
    state = model.state_dict()
    fitted(state, state, "The model to be saved")
    header = {
        "format": _FORMAT,
        "configuration": model.config.to_dict(),
        "trained": trained,
        "weights": weights,
    }
    write_tensors(state, path, {_KEY: json.dumps(header, ensure_ascii=False)})


def load_checkpoint(path: Path) -> LoadedCheckpoint:
    """Build the model a checkpoint describes, in float32 on the CPU, with its weights.

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint, of a newer format, or its
            tensors are not exactly those of its configuration.
    """
    require_file(path)
    try:
        with safe_open(path, "pt") as file:
            header = _header((file.metadata() or {}).get(_KEY), path)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        problem = no_safetensors(path, error)
        if path.suffix != _SUFFIX:
            problem = WeightsError(f"{problem} {_EXPECTED}")
        raise problem from error
    try:
        config = EscNetConfig.from_dict(header["configuration"])
    except InputError as error:
        raise WeightsError(f"{path}: {error}") from error
    return LoadedCheckpoint(
        model=_model(config, tensors, path),
        trained=header["trained"],
        weights=header["weights"],
    )


def _model(config: EscNetConfig, tensors: dict[str, Tensor], path: Path) -> EscNet:
    # Checked against shapes alone first: a wrong file should not cost gigabytes.
    with torch.device("meta"):
        shapes = build_model(config).state_dict()
    values = fitted(tensors, shapes, str(path))
    model = build_model(config)
    targets = model.state_dict()
    copy_into((targets[name], value) for name, value in values.items())
    return model


def _header(text: str | None, path: Path) -> dict[str, Any]:
    if text is None:
        raise WeightsError(
            f"{path} is safetensors, but no checkpoint of this project: its metadata has no "
            f"{_KEY!r}. Weights of CLIP or SAM alone are loaded into a model of a preset."
        )
    try:
        header = parse_object(text, f"The description in {path}")
    except InputError as error:
        raise WeightsError(str(error)) from error
    version = header.get("format")
    if type(version) is int and version > _FORMAT:
        raise WeightsError(
            f"{path} has checkpoint format {version}, this version of escnet reads {_FORMAT}: "
            "install a newer one."
        )
    got = {key: type(value) for key, value in header.items()}
    if got != _FIELDS or version != _FORMAT:
        kinds = {key: kind.__name__ for key, kind in got.items()}
        expected = {key: kind.__name__ for key, kind in _FIELDS.items()}
        raise WeightsError(
            f"{path} has a description with {kinds} and format {version!r}, expected {expected} "
            f"and format {_FORMAT}."
        )
    return header
