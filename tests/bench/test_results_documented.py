"""Every key of a result file is told in the documents, and the README's ratios are the files'."""

import json
import re
from pathlib import Path

import pytest

from tests.shared import ROOT

RESULTS = ROOT / "benchmarks/results"
#: Made by hand: their method tells what their keys are.
BY_HAND = {"chunks", "export", "photos", "engines", "calibration", "training"}
DOCUMENTS = ("benchmarks/results/README.md", "docs/benchmarks.md", "docs/benchmarks-report.md")


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.relative_to(RESULTS).as_posix()
)
def test_every_key_of_a_committed_file_is_documented(path: Path) -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    document = json.loads(path.read_text(encoding="utf-8"))
    kind = document.get("benchmark", "eval")
    if kind in BY_HAND or path.name == "parity-tiny-cpu.json":
        pytest.skip("put together by hand")
    rows = document.get("rows", [])
    keys = {key for row in rows for key in row} | set(document) | set(document["conditions"])
    frame = {"benchmark", "schema_version", "conditions", "rows", "note"}
    assert not {key for key in keys - frame if f"`{key}`" not in text and f'"{key}"' not in text}


def ratio(name: str, allocator: str, categories: int, implementation: str) -> float:
    """How many times as long as ours a file says that an implementation took."""
    implementation, _, precision = implementation.partition(" ")
    document = json.loads((RESULTS / f"latency-vit-b-16-{name}.json").read_text(encoding="utf-8"))
    wanted = (allocator, categories, implementation, precision or "fp32")
    keys = ("allocator", "categories", "implementation", "precision")
    [found] = [
        row["ratio"] for row in document["ratios"] if tuple(row[key] for key in keys) == wanted
    ]
    return float(found)


@pytest.mark.parametrize(
    ("name", "allocator", "implementation", "over", "quoted"),
    [
        ("epyc-compiled-cpu", "kept", "torch-plain", None, {150: "2.69", 19: "2.14"}),
        ("epyc-compiled-cpu", "kept", "torch-compile-static", None, {150: "2.45", 19: "1.91"}),
        ("epyc-compiled-cpu", "kept", "torch-compile-dynamic", None, {150: "2.51", 19: "2.01"}),
        ("epyc-compiled-cpu", "kept", "openvino", None, {150: "0.90", 19: "0.83"}),
        ("epyc-shared-cpu", "kept", "torch", None, {150: "1.93", 19: "1.99"}),
        ("epyc-shared-cpu", "kept", "torch-shared-compile-static", None, {150: "1.68", 19: "1.76"}),
        ("epyc-cpu", "default", "torch-plain", None, {150: "6.3", 19: "2.3"}),
        ("epyc-again-cpu", "default", "torch-plain", None, {150: "5.4"}),
        ("epyc-bf16-cpu", "kept", "torch-plain bf16", None, {19: "1.8", 150: "2.1"}),
        ("epyc-bf16-cpu", "kept", "torch-plain", None, {19: "4.2", 150: "4.4"}),
        ("compiled-cpu", "kept", "torch-plain", "openvino", {150: "1.68"}),
        ("compiled-cpu", "kept", "torch-compile-static", "openvino", {150: "1.58"}),
        ("compiled-cpu", "kept", "onnxruntime", "openvino", {150: "1.13"}),
        ("cpu", "kept", "torch-plain", "openvino", {19: "1.50"}),
        ("cpu", "kept", "torch-compile-static", "openvino", {19: "1.47"}),
        ("cpu", "kept", "onnxruntime", "openvino", {19: "1.36"}),
        ("cpu", "kept", "torch", "openvino", {19: "1.17"}),
        ("cpu", "default", "torch-plain", "openvino", {150: "3.99", 19: "1.60"}),
        ("bf16-cpu", "kept", "torch-plain bf16", None, {19: "1.5", 150: "1.7"}),
        ("bf16-cpu", "kept", "torch-plain", None, {19: "3.2", 150: "3.3"}),
        (
            "epyc-cat-seg-cpu",
            "default",
            "torch-cat-seg",
            None,
            {19: "2.00", 58: "1.80", 150: "2.00"},
        ),
        (
            "epyc-cat-seg-kept-cpu",
            "kept",
            "torch-cat-seg",
            None,
            {19: "1.81", 58: "1.40", 150: "1.13"},
        ),
        (
            "epyc-cat-seg-kept-cpu",
            "kept",
            "torch-cat-seg",
            "openvino",
            {19: "2.06", 58: "1.43", 150: "1.29"},
        ),
        (
            "cat-seg-cpu",
            "default",
            "torch-cat-seg",
            None,
            {19: "1.26", 58: "1.16", 150: "1.49"},
        ),
        ("cat-seg-kept-cpu", "kept", "torch-cat-seg", None, {150: "0.81"}),
        ("cat-seg-kept-cpu", "kept", "torch-cat-seg", "openvino", {150: "0.91"}),
    ],
)
def test_the_readmes_ratios_are_those_of_its_files(
    name: str, allocator: str, implementation: str, over: str | None, quoted: dict[int, str]
) -> None:
    """By categories; ``over`` is what they are multiples of, where that is not the file's own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measured")[2]
    file = f"latency-vit-b-16-{name}.json"
    [paragraph] = [one for one in re.split(r"\n- |\n\n", text) if file in one]
    for categories, words in quoted.items():
        value = ratio(name, allocator, categories, implementation)
        if over is not None:
            value /= ratio(name, allocator, categories, over)
        assert f"{value:.{len(words) - 2}f}" == words
        assert re.search(rf"(?<![\d.]){re.escape(words)}(?!\d)", paragraph)
