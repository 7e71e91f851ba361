"""Bundles of real graphs, as they are exported, without what proves them: that takes longer."""

import dataclasses
from pathlib import Path
from typing import Final

from escnet.build import build_model
from escnet.presets import preset
from escnet_export.export import GraphExporter
from escnet_export.graphs import Graph, Port, model_graphs
from escnet_export.precision import cast_model
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.groups import GROUP
from escnet_runtime.manifest import DType, FileRef, Manifest, Precision, Stage, TensorSpec
from tests.runtime.test_manifest import sample_manifest

__all__ = ["write_exported"]

_TYPES: Final[dict[Precision, DType]] = {
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
}


def write_exported(root: Path, name: str, precision: Precision) -> Bundle:
    """Export every graph of an untrained preset at ``precision``; chunks of 16 categories."""
    model = build_model(preset(name)).eval().requires_grad_(False)
    exporter = GraphExporter(model.config, precision)
    (root / "graphs").mkdir(parents=True)
    stages = {}
    for graph in model_graphs(cast_model(model, precision)):
        exporter.export(graph, root / "graphs" / f"{graph.name}.onnx")
        stages[graph.name] = _stage(root, graph, precision)
    sample = sample_manifest()
    manifest = dataclasses.replace(
        sample,
        model=dataclasses.replace(sample.model, name=name),
        precision=precision,
        constants=dataclasses.replace(sample.constants, chunk=16, group=GROUP),
        stages=stages,
        tokenizer=dataclasses.replace(
            sample.tokenizer, context_length=model.config.clip.context_length
        ),
    )
    return _with_other_files(root, manifest)


def _stage(root: Path, graph: Graph, precision: Precision) -> Stage:
    def spec(port: Port) -> TensorSpec:
        kind: DType = _TYPES[precision] if port.kind == "graph" else port.kind
        return TensorSpec(name=port.name, dtype=kind, shape=port.shape)

    file = _reference(root, f"graphs/{graph.name}.onnx")
    return Stage(
        file=file.file,
        sha256=file.sha256,
        bytes=file.bytes,
        precision=precision,
        inputs=tuple(spec(port) for port in graph.inputs),
        outputs=tuple(spec(port) for port in graph.outputs),
    )


def _with_other_files(root: Path, manifest: Manifest) -> Bundle:
    """Empty files in place of tokenizer, golden run and parity, which no compiler reads."""
    for file in ("tokenizer.json", "golden/image.png", "parity.json"):
        path = root / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    tokenizer = _reference(root, "tokenizer.json")
    manifest = dataclasses.replace(
        manifest,
        tokenizer=dataclasses.replace(
            manifest.tokenizer, sha256=tokenizer.sha256, bytes=tokenizer.bytes
        ),
        golden=dataclasses.replace(manifest.golden, files=(_reference(root, "golden/image.png"),)),
        parity=dataclasses.replace(manifest.parity, files=(_reference(root, "parity.json"),)),
    )
    (root / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(root)


def _reference(root: Path, file: str) -> FileRef:
    path = root / file
    return FileRef(file=file, sha256=sha256_file(path), bytes=path.stat().st_size)
