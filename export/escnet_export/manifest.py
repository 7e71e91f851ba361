"""``bundle.json`` of a bundle whose files are all there."""

import platform
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime
import torch

from escnet.config import EscNetConfig
from escnet_runtime import __version__
from escnet_runtime.bundle import sha256_file
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

from .decision import Decision
from .description import constants_of, model_info
from .golden import GOLDEN_FILES
from .graphs import Port
from .parity_files import PARITY_FILES
from .workshop import Built

__all__ = ["write_manifest"]

#: The oldest ONNX Runtime that reads the opset and IR version we write.
_ORT_MINIMUM: Final = {Precision.FP32: "1.18", Precision.FP16: "1.18", Precision.BF16: "1.20"}


def write_manifest(
    folder: Path,
    config: EscNetConfig,
    decision: Decision,
    *,
    weights: str,
    trained: bool,
    categories: tuple[str, ...],
) -> None:
    """Write ``bundle.json``; everything that it names is in ``folder`` already.

    Args:
        folder: of the bundle.
        config: of the model.
        decision: of the accuracy gate; its files are where the bundle has them.
        weights: where the weights come from, as a text for people.
        trained: whether the weights are trained.
        categories: of the golden run.
    """
    report = decision.report
    tokenizer = _reference(folder, "tokenizer.json")
    manifest = Manifest(
        model=model_info(config, weights=weights, trained=trained),
        precision=decision.plan.base,
        constants=constants_of(config),
        stages={name: _stage(folder, built) for name, built in decision.built.items()},
        tokenizer=TokenizerRef(**_fields(tokenizer), context_length=config.clip.context_length),
        golden=Golden(
            categories=categories,
            files=tuple(_reference(folder, f"golden/{name}") for name in GOLDEN_FILES),
        ),
        parity=Parity(
            passed=report.passed,
            gate=report.gate,
            allowed_failure=not report.passed,
            pixel_agreement=report.pixel_agreement,
            prompt_flips=report.prompt_flips,
            files=tuple(_reference(folder, name) for name in PARITY_FILES),
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
    (folder / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")


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
