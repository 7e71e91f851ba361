"""Result documents that tests make, as escnet-bench writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "BUNDLE",
    "conditions",
    "evaluation",
    "latency",
    "latency_row",
    "parity",
    "parity_row",
    "write",
]

BUNDLE = "ab" * 32


def conditions(**changes: Any) -> dict[str, Any]:
    """Of a machine without a GPU."""
    return {
        "date": "2026-11-26T10:00:00+00:00",
        "method": "as ever",
        "system": "Linux",
        "cpu": "Test CPU",
        "cores": 4,
        "usable_cores": 4,
        "memory_bytes": 8 * 2**30,
        "gpus": [],
        "python": "CPython 3.11.7",
        "packages": {"onnxruntime": "1.32.0", "torch": "2.15.0"},
        "variables": {},
        "load_before": [0.1, 0.1, 0.1],
        "load_after": [1.0, 0.5, 0.2],
        "commit": "abc",
        "changed": False,
        "bundle": {
            "name": "tiny-fp16",
            "model": "tiny",
            "precision": "fp16",
            "trained": True,
            "weights": "trained",
            "sha256": BUNDLE,
        },
        **changes,
    }


def latency_row(**changes: Any) -> dict[str, Any]:
    """A row of "latency"."""
    return {
        "model": "tiny",
        "implementation": "onnxruntime",
        "precision": "fp16",
        "allocator": "default",
        "categories": 19,
        "chunk": 16,
        "repeats": 7,
        "p50_ms": 100.0,
        "p95_ms": 110.0,
        "p99_ms": 120.0,
        "first_ms": 300.0,
        "stages": {"image_encoder": 60.0, "sam": 30.0, "decoder": 10.0},
        "peak_memory_bytes": 200_000_000,
        "device_memory_bytes": None,
        "gflop": 5.0,
        "floor_ms": 40.0,
        "floor_share": 0.4,
        "energy_mj": None,
        "agreement": 1.0,
        **changes,
    }


def latency(*rows: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A document; by default ours and eager PyTorch at two numbers of categories."""
    torch = {"implementation": "torch", "precision": "fp32", "chunk": None, "agreement": 0.9991}
    usual = [
        latency_row(),
        latency_row(categories=150, p50_ms=500.0, peak_memory_bytes=220_000_000),
        latency_row(**torch, p50_ms=250.0),
        latency_row(**torch, categories=150, p50_ms=2000.0),
    ]
    return {
        "benchmark": "latency",
        "schema_version": "1.0",
        "conditions": conditions(),
        "rows": list(rows) or usual,
        "left_out": [],
        "ratios": [],
        **changes,
    }


def parity_row(**changes: Any) -> dict[str, Any]:
    """A row of "parity"."""
    return {
        "model": "tiny",
        "precision": "fp16",
        "implementation": "onnxruntime",
        "backend": "ONNX Runtime 1.32.0 on CPU",
        "dataset": "shapes:heldout",
        "images": 60,
        "categories": 194,
        "reference": "torch",
        "miou": 0.7618,
        "reference_miou": 0.762,
        "miou_difference": -0.0002,
        "pixel_accuracy": 0.95,
        "reference_pixel_accuracy": 0.951,
        "pixel_agreement": 0.99988,
        "prompt_flips": [1, 2, 3, 4],
        "prompts": [970, 970, 970, 970],
        "stages": {
            "image_encoder": {"relative_l2": 6e-4, "cosine": 0.9999998},
            "decoder": {"relative_l2": None, "cosine": -1.0},
        },
        "stage_images": 4,
        "golden": {
            "pixel_agreement": 0.9987,
            "prompt_flips": 9,
            "prompts": 360,
            "stages": {"decoder": 4e-4},
            "failure": None,
        },
        **changes,
    }


def parity(*rows: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A document of "parity"."""
    return {
        "benchmark": "parity",
        "schema_version": "1.0",
        "conditions": conditions(),
        "rows": list(rows) or [parity_row()],
        "note": None,
        **changes,
    }


def evaluation(**changes: Any) -> dict[str, Any]:
    """What escnet-eval writes, as far as a report reads it."""
    return {
        "miou": 0.7618,
        "pixel_accuracy": 0.95,
        "per_class": {"cat": 0.7618},
        "model": "tiny",
        "kind": "bundle",
        "precision": "fp16",
        "backend": "ONNX Runtime 1.32.0 on CPU",
        "dataset": "shapes:heldout",
        "images": 60,
        "categories": 150,
        "window": "none",
        "correlation": False,
        "shortlist": None,
        "conditions": conditions(),
        **changes,
    }


def write(path: Path, document: object) -> Path:
    """Write a document as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
