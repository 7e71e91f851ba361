"""Files of named tensors. Reading one never runs what it contains; writing one leaves no half.

Python pickles are programs. PyTorch's ``weights_only=True`` reads the few instructions that plain
tensors need and refuses the rest; there is no switch here that turns this off.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from escnet_runtime.atomic import atomic_file

from .kinds import PYTORCH, SAFETENSORS, kind_of_file
from .state import WeightsError, listed

__all__ = ["SUFFIXES", "no_safetensors", "read_tensors", "require_file", "write_tensors"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *_PICKLED)

_PREFIX = "module."  # what DistributedDataParallel and AveragedModel put in front of every name
_COUNT = "n_averaged"  # AveragedModel's own, beside them
_COMPILED = "_orig_mod."  # what torch.compile puts in front of a module's names
#: Where those who train keep the tensors, beside epochs and optimisers; the first that is there.
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "state_dict_ema")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
#: PyTorch's unpickler on a class that is no tensor's; behind it comes advice to allow it.
_GLOBAL: Final = re.compile(r"Unsupported global: GLOBAL (\S+)")
_UNPICKLER: Final = "WeightsUnpickler error:"
_ADVICE: Final = ("weights_only", "torch.load", "torch.serialization", "still be loaded")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    ``.safetensors``, or PyTorch's ``.pt``, ``.pth``, ``.bin`` and ``.ckpt``: a dictionary of
    tensors, bare or under the key ``state_dict``, ``model_state_dict``, ``model`` or
    ``state_dict_ema``. What PyTorch's wrappers put in front of names is taken away: ``module.`` of
    all of them, ``_orig_mod.`` of each.

    Raises:
        WeightsError: there is no such file, it is damaged, of another kind, or would need Python
            code to be run.
    """
    require_file(path)
    if path.suffix == ".safetensors":
        try:
            return _unprefixed(load_file(path))
        except (SafetensorError, OSError) as error:
            raise no_safetensors(path, error) from error
    if path.suffix in _PICKLED:
        return _tensors_of(_unpickled(path), path)
    kind = kind_of_file(path)
    raise WeightsError(
        f"{path} has the suffix {path.suffix!r}, expected {', '.join(SUFFIXES)}"
        f"{f'; {kind}' if kind else ''}."
    )


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write safetensors, whole or not at all; needs as much memory again as the tensors.

    Args:
        tensors: on any device.
        path: replaced if it exists.
        metadata: of the file.

    Raises:
        InputError: the place is not writable.
        OSError: the disk is full, or a similar failure while writing.
    """
    plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    # Not save_file: it writes under a name of its own, which no later save would remove after a
    # kill, and gives the file to its owner alone, whatever the umask.
    content = save(plain, metadata=dict(metadata))
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def require_file(path: Path) -> None:
    """Raise `WeightsError` unless ``path`` is a file."""
    if not path.is_file():
        got = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {got}, expected a file of weights.")


def no_safetensors(path: Path, error: Exception) -> WeightsError:
    """The error of a file that cannot be read as safetensors: what it is, where that shows."""
    kind = kind_of_file(path)
    if kind in (None, SAFETENSORS):
        kind = f"{str(error).rstrip('.')}; it may be damaged or cut short"
    return WeightsError(f"{path} cannot be read as safetensors: {kind}.")


def _unpickled(path: Path) -> object:
    if (kind := kind_of_file(path)) not in (None, PYTORCH):
        raise WeightsError(f"{path} cannot be read as a file of PyTorch: {kind}.")
    if _is_torchscript(path):
        raise WeightsError(
            f"{path} is a TorchScript program, and programs of others are not run here. Convert "
            f"it once, where you trust it: torch.save(torch.jit.load({str(path)!r}, "
            "map_location='cpu').state_dict(), 'weights.pt')."
        )
    try:
        with warnings.catch_warnings():
            # What torch says of a pickle's version concerns its author; the reader gets an error.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it holds more than plain tensors, or is damaged "
            f"({_reason(error)}). A pickle can run any program, so nothing else is read; convert "
            "it to safetensors where you trust it (docs/training.md has the lines)."
        ) from error
    except Exception as error:  # a damaged file can make the unpickler stumble anywhere
        raise WeightsError(
            f"{path} cannot be read, it may be damaged or cut short: {_reason(error)}."
        ) from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _reason(error: Exception) -> str:
    """What PyTorch says, without its advice to read the file unsafely."""
    text = _COLOURS.sub("", str(error))
    if found := _GLOBAL.search(text):
        return f"it asks for {found[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not any(advice in line for advice in _ADVICE)]
    lines.sort(key=lambda line: _UNPICKLER not in line)
    return lines[0].removeprefix(_UNPICKLER).strip().rstrip(".") if lines else type(error).__name__


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    state = _unwrapped(content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise WeightsError(
            f"{path} holds {_described(state)}, expected a dictionary of named tensors."
        )
    wrong = [
        f"{key!r} is {type(value).__name__}"
        for key, value in state.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        raise WeightsError(
            f"{path} holds more than named tensors: {listed(wrong)}. Expected them alone, or under "
            f"one of the keys {', '.join(_WRAPPERS)}."
        )
    return _unprefixed(state)


def _unwrapped(content: dict[object, object]) -> object:
    for key in _WRAPPERS:
        if key in content and not isinstance(content[key], Tensor):
            return content[key]
    return content


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    if all(name.startswith(_PREFIX) or name == _COUNT for name in state):
        state.pop(_COUNT, None)
        return {name.removeprefix(_PREFIX): value for name, value in state.items()}
    return state


def _described(value: object) -> str:
    return "an empty dictionary" if isinstance(value, dict) else f"a {type(value).__name__}"
