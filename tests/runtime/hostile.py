"""Bundles as a stranger could make them: signed, so that only the intended fault is left.

Graphs are not ONNX: what is wrong must be found before a library gets to see one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from escnet_runtime.contract import Port, graph_ports
from escnet_runtime.manifest import FileRef, Manifest, Stage, TensorSpec
from escnet_runtime.vocabulary import plan_texts
from tests.runtime.test_manifest import sample_manifest

__all__ = [
    "change_description",
    "full_manifest",
    "replace_file",
    "signed",
    "write_whole_bundle",
]

#: A size for the axes that the format leaves open: two heads, of half the embedding's width.
_HEADS: Final = 2


def full_manifest(contents: Mapping[str, bytes]) -> Manifest:
    """Of `tiny` with all its graphs; ``contents`` has their files and the others."""
    sample = sample_manifest()

    def reference(file: str) -> FileRef:
        data = contents[file]
        return FileRef(file=file, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def stage(name: str, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> Stage:
        file = reference(f"graphs/{name}.onnx")
        return Stage(
            **{field: getattr(file, field) for field in ("file", "sha256", "bytes")},
            precision=sample.precision,
            inputs=_specs(inputs, sample.model.hidden_dim),
            outputs=_specs(outputs, sample.model.hidden_dim),
        )

    tokenizer = reference("tokenizer.json")
    return dataclasses.replace(
        sample,
        stages={name: stage(name, *ports) for name, ports in graph_ports(sample).items()},
        tokenizer=dataclasses.replace(
            sample.tokenizer, sha256=tokenizer.sha256, bytes=tokenizer.bytes
        ),
        golden=dataclasses.replace(
            sample.golden,
            files=tuple(reference(name) for name in contents if name.startswith("golden/")),
        ),
        parity=dataclasses.replace(sample.parity, files=(reference("parity.json"),)),
    )


def _specs(ports: Mapping[str, Port], hidden: int) -> tuple[TensorSpec, ...]:
    def shape(port: Port) -> tuple[int | str, ...]:
        free = [hidden // _HEADS] * port.shape.count(None)
        free[0:1] = [_HEADS] if free else []
        sizes = iter(free)
        return tuple(next(sizes) if axis is None else axis for axis in port.shape)

    def kind(port: Port) -> Any:
        return "float32" if "float32" in port.types else next(iter(port.types))

    return tuple(
        TensorSpec(name=name, dtype=kind(port), shape=shape(port)) for name, port in ports.items()
    )


def write_whole_bundle(root: Path) -> Path:
    """Write a bundle that is refused by nothing but a library that is to run its graphs."""
    contents = _golden(root.parent)
    contents["tokenizer.json"] = b"{}"
    contents["parity.json"] = b"[]"
    for name in graph_ports(sample_manifest()):
        contents[f"graphs/{name}.onnx"] = f"not a graph: {name}".encode()
    for file, data in contents.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "bundle.json").write_text(full_manifest(contents).to_json(), encoding="utf-8")
    return root


def _golden(place: Path) -> dict[str, bytes]:
    sample = sample_manifest()
    categories, model = sample.golden.categories, sample.model
    prompts = plan_texts(categories, sample.constants.templates).prompts
    points = (model.blocks, len(categories), sample.constants.ppg.regions)
    files = {}
    scratch = place / "scratch"
    np.savez(
        scratch.with_suffix(".npz"),
        points=np.zeros((*points, 2), np.int16),
        point_labels=np.zeros(points, np.int8),
        regions=np.zeros((*points[:2], *model.grid), np.int8),
    )
    files["golden/prompts.npz"] = scratch.with_suffix(".npz").read_bytes()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(scratch.with_suffix(".png"))
    files["golden/image.png"] = scratch.with_suffix(".png").read_bytes()
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(scratch.with_suffix(".png"))
    files["golden/labels.png"] = scratch.with_suffix(".png").read_bytes()
    for path in (scratch.with_suffix(".npz"), scratch.with_suffix(".png")):
        path.unlink()
    reference = {
        "categories": list(categories),
        "prompts": list(prompts),
        "tokens": [[1, 2, 3]] * len(prompts),
        "stage_tolerance": 0.01,
        "pixel_agreement": 0.9,
        "preprocessed": [0.0],
        "stages": {},
    }
    files["golden/reference.json"] = json.dumps(reference).encode()
    return files


def change_description(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``bundle.json`` and give it the digest that fits."""
    path = root / "bundle.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(signed(document), encoding="utf-8")


def replace_file(root: Path, file: str, data: bytes) -> None:
    """Write another content of a file and let ``bundle.json`` agree with it."""
    (root / file).write_bytes(data)

    def agree(document: dict[str, Any]) -> None:
        references = [
            *document["stages"].values(),
            document["tokenizer"],
            *document["golden"]["files"],
            *document["parity"]["files"],
        ]
        for reference in references:
            if reference["file"] == file:
                reference.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    change_description(root, agree)


def signed(document: Mapping[str, Any]) -> str:
    """A ``bundle.json`` with the digest that fits it."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**rest, "digest": hashlib.sha256(canonical.encode()).hexdigest()})
