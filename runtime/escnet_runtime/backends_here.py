"""Which backends can run a bundle on this machine, and what each of the others lacks."""

import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from .backends import BACKENDS
from .engine_record import Compiler
from .engines import EngineFolder, installed_version, rebuild_command
from .errors import BackendError
from .libraries import what_installs
from .manifest import Precision
from .nvidia import broken_driver, find_gpu

__all__ = ["BackendHere", "backends_here"]

_NO_GPU: Final = "there is no NVIDIA GPU with a driver"
_ORT: Final = "ONNX Runtime is not installed (escnet-runtime[onnxruntime])"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendHere:
    """A backend; ``lacks`` says in a clause why it cannot run the bundle here, None if it can."""

    name: str
    lacks: str | None


def backends_here(
    root: Path, folders: Sequence[EngineFolder], precisions: Collection[Precision]
) -> list[BackendHere]:
    """All of :data:`escnet_runtime.backends.BACKENDS` except "auto"; opens no GPU.

    Args:
        root: the bundle.
        folders: its engines, from :func:`escnet_runtime.engines.survey_engines`.
        precisions: of its graphs.
    """
    return [
        BackendHere(name=name, lacks=_lacks(name, root, folders, precisions))
        for name in BACKENDS
        if name != "auto"
    ]


def _lacks(
    name: str, root: Path, folders: Sequence[EngineFolder], precisions: Collection[Precision]
) -> str | None:
    if name == "onnxruntime":
        return None if _is_there("onnxruntime") else _ORT
    if name == "openvino":
        return _openvino_lacks(precisions)
    if find_gpu() is None:
        return broken_driver() or _NO_GPU
    for compiler in get_args(Compiler):
        if name == compiler:
            lack = _engines_lack(compiler, root, folders)
            break
    else:
        lack = _provider_lacks()
    if lack is None and not _is_there("cuda.bindings"):
        return "cuda-bindings is not installed (escnet-runtime[cuda])"
    return lack


def _openvino_lacks(precisions: Collection[Precision]) -> str | None:
    if not _is_there("openvino"):
        return "OpenVINO is not installed (escnet-runtime[openvino])"
    eight = {Precision.INT8, Precision.FP8} & set(precisions)
    return f"graphs are typed {min(eight)}" if eight else None


def _provider_lacks() -> str | None:
    if not _is_there("onnxruntime"):
        return _ORT
    from .gpu.onnxruntime import require_provider  # the optional ONNX Runtime

    try:
        require_provider("cuda")
    except BackendError as error:
        return str(error)
    return None


def _engines_lack(backend: Compiler, root: Path, folders: Sequence[EngineFolder]) -> str | None:
    own = [folder for folder in folders if folder.backend == backend]
    if any(folder.state == "fits" for folder in own):
        return None
    if installed_version(backend) is None:
        return f"it is not installed ({what_installs(backend)})"
    command = rebuild_command(root, backend)
    if not own:
        return f"the bundle has no engines for it; build them: {command}"
    first = next((folder for folder in own if folder.state == "misfit"), own[0])
    what = "are for something else" if first.state == "misfit" else "are damaged"
    return f"its engines {what} ({first.reasons[0]}); rebuild them: {command}"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
