"""``escnet-bench latency``: its object, its tables, and what it refuses."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from escnet import preset
from escnet.weights import shipped_checkpoint
from escnet_bench.clocks import Clocks, GpuClocks
from escnet_bench.command import main
from escnet_bench.latency import choose, command, runs, subject
from escnet_bench.latency.exported import bundle_of, source_key
from escnet_bench.latency.floor import Peak
from escnet_bench.latency.plan import IMPLEMENTATIONS
from escnet_bench.latency.rows import LatencyRow, LeftOut, Ratio
from escnet_bench.latency.subject import open_subject
from escnet_bench.subjects import load_model
from escnet_runtime.bundle import Bundle
from escnet_runtime.manifest import Precision
from tests.runtime.hostile import change_description
from tests.shared import ROOT

ROW = {
    "model",
    "implementation",
    "precision",
    "allocator",
    "categories",
    "chunk",
    "repeats",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "first_ms",
    "stages",
    "peak_memory_bytes",
    "device_memory_bytes",
    "gflop",
    "floor_ms",
    "floor_share",
    "energy_mj",
    "agreement",
}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """Exit code and the object."""
    code = main(["latency", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_result_is_as_documented(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    photo, output = tmp_path / "photo.png", tmp_path / "latency.json"
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(photo)
    words = ["--bundle", tiny_bundle, "--categories", 3, "--repeats", 3, "--minutes", 30]
    words += ["--implementations", "onnxruntime", "torch", "torch-plain", "--image", photo]
    code, found = run(capsys, *words, "--output", output)
    assert code == 0
    assert json.loads(output.read_text(encoding="utf-8")) == found
    keys = ["benchmark", "schema_version", "conditions", "rows", "left_out", "ratios"]
    assert list(found) == keys
    assert found["benchmark"] == "latency"
    assert all(set(row) == ROW for row in found["rows"])
    assert len(found["rows"]) == 2 * 3
    for row in found["rows"]:
        assert row["repeats"] == 3
        assert row["first_ms"] > 0
        assert row["p99_ms"] >= row["p95_ms"] >= row["p50_ms"] > 0
        assert row["gflop"] > 0
        assert row["chunk"] == (16 if row["implementation"] == "onnxruntime" else None)
        assert row["precision"] == ("fp16" if row["implementation"] == "onnxruntime" else "fp32")
    plain, shared = (
        next(row["gflop"] for row in found["rows"] if row["implementation"] == name)
        for name in ("torch-plain", "torch")
    )
    assert shared < plain
    assert {one["ours"] for one in found["ratios"]} == {"onnxruntime"}
    assert len(found["ratios"]) == len(found["rows"])
    for row in found["rows"]:
        assert (row["peak_memory_bytes"] or 0) > 2**20 or row["allocator"] == "kept"
        assert row["peak_memory_bytes"] is None or row["allocator"] == "default"
    conditions = found["conditions"]
    assert conditions["device"] == "cpu"
    assert "MALLOC_ARENA_MAX" not in conditions["variables"]  # nor did those that measured have it
    assert set(conditions["allocators"]) == {"default", "kept"}
    assert conditions["threads"]["torch"] >= 1
    assert conditions["peak"]["gflop_a_second"]["fp32"] > 0
    assert conditions["clocks_before"] is not None
    assert str(tmp_path) not in json.dumps(found)


def test_every_key_of_a_row_is_documented() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    kinds = (LatencyRow, LeftOut, Ratio, Clocks, GpuClocks, Peak)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert not {name for name in names | set(IMPLEMENTATIONS) if f"`{name}`" not in text}
    assert {field.name for field in dataclasses.fields(LatencyRow)} == ROW


def test_tables_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    row = dict.fromkeys(sorted(ROW))
    row |= {"model": "tiny", "implementation": "onnxruntime", "precision": "fp32"}
    row |= {"categories": 19, "allocator": "kept", "p50_ms": 12.3, "p95_ms": 13.0, "p99_ms": 14.0}
    row |= {"first_ms": 1500.0, "stages": {"sam": 4.5}, "repeats": 3}
    document = {
        "rows": [row],
        "ratios": [],
        "left_out": [
            {
                "implementation": "tensorrt",
                "precision": "fp32",
                "categories": None,
                "allocator": None,
                "reason": "no GPU\nat all",
            }
        ],
        "conditions": {"gpus": [], "peak": None, "usable_cores": 2, "cpu": "a processor"},
    }
    from escnet_bench.latency.tables import latency_tables
    from escnet_runtime.console import Console

    Console().print(*latency_tables(document))
    out = capsys.readouterr().out
    assert "12.3" in out
    assert "4.5" in out
    assert "2 cores of a processor" in out
    assert "no GPU" in out
    assert "at all" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--categories", "0"], "--categories has 0, expected 1 to"),
        (["--categories", "19", "70000"], "--categories has 70000"),
        (["--repeats", "2"], "--repeats is 2, expected at least 3"),
        (["--repeats", "0"], "--repeats is 0, expected at least 3"),
        (["--minutes", "0"], "--minutes is 0.0, expected more than 0"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--implementations", "abacus"], "invalid choice: 'abacus'"),
        (["--preset", "huge"], "huge"),
        (["--bundle", "none"], "none"),
        (["--checkpoint", "none.safetensors"], "there is no checkpoint none.safetensors"),
        (["--checkpoint", "."], ". is a folder; expected a file of escnet-train, NAME.safetensors"),
        (["--preset", "tiny", "--bundle", "none"], "not allowed with argument"),
        (["--image", "none.png"], "none.png"),
        (["--cat-seg", "none"], "there is no cat_seg/modeling/transformer/model.py; expected a"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(capsys, *words)
    assert code == 2
    assert message in found["error"]["message"]


def test_a_precision_that_is_not_the_bundles_is_refused(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(capsys, "--bundle", tiny_bundle, "--precision", "bf16")
    assert code == 2
    assert "--precision bf16: the bundle is of fp16" in found["error"]["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--implementations", "tensorrt"], "tensorrt cannot be measured: it runs on NVIDIA's"),
        (["--device", "gpu"], "no NVIDIA GPU"),
    ],
)
def test_what_is_asked_for_by_name_is_used_or_refused(
    tiny_bundle: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "find_gpu", lambda: None)
    code, found = run(capsys, "--bundle", tiny_bundle, *words)
    assert code == 1
    assert message in found["error"]["message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebody-elses", "'somebody-elses' is no preset"),
        ("vit-b-16", "has the sizes"),
    ],
)
def test_a_bundle_of_another_model_has_no_torch_beside_it(
    bundle_copy: Path,
    name: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_description(bundle_copy, lambda description: description["model"].update(name=name))
    subject = open_subject(
        preset=None, checkpoint=None, bundle=bundle_copy, precision=Precision.FP32, images=[]
    )
    assert subject.torch_model is None
    assert message in subject.no_torch
    assert subject.gflop()("plain", 19, None) is None
    variants, missing = choose.chosen_variants(subject, None, None, gpu=False)
    assert [one.implementation for one in variants] == ["onnxruntime", "openvino"]
    assert any(message in reason for reason in missing.values())
    code, found = run(capsys, "--bundle", bundle_copy, "--implementations", "torch")
    assert code == 1
    assert message in found["error"]["message"]


@pytest.mark.parametrize("able", [True, False])
def test_on_a_cpu_bf16_is_measured_where_there_is_bf16(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "openvino_computes_bf16", lambda: able)

    def kinds(name: str, precision: Precision) -> list[str]:
        return [one.precision for one in choose.variants_of(name, precision, gpu=False)]

    assert kinds("openvino", Precision.BF16) == ["bf16" if able else "fp32"]
    assert kinds("torch-plain", Precision.BF16) == ["bf16", "fp32"]
    assert kinds("torch-naive-ppg", Precision.BF16) == ["fp32"]
    for precision in (Precision.FP32, Precision.FP16):
        assert kinds("openvino", precision) == kinds("torch", precision) == ["fp32"]


def test_on_a_gpu_torch_runs_in_half_precision_and_the_plain_form_in_both() -> None:
    every = {
        name: [one.precision for one in choose.variants_of(name, Precision.FP16, gpu=True)]
        for name in IMPLEMENTATIONS
    }
    assert every["torch-plain"] == ["fp16", "fp32"]
    assert every["torch"] == every["onnxruntime"] == ["fp16"]
    [quantised] = choose.variants_of("torch", Precision.INT8, gpu=True)
    assert quantised.precision == "fp16"


def test_labels_that_are_not_ours_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told:
        same_weights = True
        bundle = type("B", (), {"manifest": type("M", (), {"model": type("X", (), {})})})

    Told.bundle.manifest.model.trained = True  # type: ignore[attr-defined]
    bench = object.__new__(command._Bench)
    monkeypatch.setattr(bench, "_subject", Told, raising=False)
    values: dict[str, Any] = dict.fromkeys(ROW)
    values |= {"precision": "fp32", "categories": 19}
    rows = [
        LatencyRow(**{**values, "implementation": name, "agreement": agreement})
        for name, agreement in (("torch", 0.5), ("openvino", 1.0), ("torch-naive-ppg", 0.5))
    ]
    with caplog.at_level(logging.WARNING, logger="escnet_bench"):
        bench._warn(rows)
    [record] = caplog.records
    assert record.getMessage().startswith("torch at fp32 gives 50.00 % of our labels")


def test_a_bundle_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from escnet_bench.latency import exported

    made: list[Path] = []

    def export(model: object, output: Path, **_: object) -> None:
        output.mkdir(parents=True)
        (output / "bundle.json").write_text("{}", encoding="utf-8")
        made.append(output)

    monkeypatch.setattr(exported, "export_bundle", export)
    folder, fresh = bundle_of("tiny", Precision.FP32, tmp_path, [])
    again, second = bundle_of("tiny", Precision.FP32, tmp_path, [])
    assert (fresh, second) == (True, False)
    assert folder == again == made[0]
    other, _ = bundle_of("tiny", Precision.FP16, tmp_path, [])
    assert other != folder
    assert len(made) == 2
    assert source_key("a") != source_key("b")
    assert source_key("a") == source_key("a")


def test_a_checkpoint_may_be_a_link_to_a_file_without_an_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface_hub keeps what it has downloaded."""
    from escnet_bench.latency import exported

    made: list[tuple[str, object]] = []

    def export(model: object, output: Path, *, weights: object, **_: object) -> None:
        output.mkdir(parents=True)
        made.append((output.name, weights))
        raise KeyboardInterrupt  # a bundle is of no use here

    monkeypatch.setattr(exported, "export_bundle", export)
    monkeypatch.setenv("ESCNET_CACHE", str(tmp_path / "cache"))
    blob = tmp_path / "blobs" / "cd"
    blob.parent.mkdir()
    shutil.copyfile(shipped_checkpoint("tiny"), blob)
    link = tmp_path / "tiny.safetensors"
    link.symlink_to(blob)
    with pytest.raises(KeyboardInterrupt):
        open_subject(preset=None, checkpoint=link, bundle=None, precision=Precision.FP32, images=[])
    [(name, weights)] = made
    assert name.startswith("cd-fp32-")
    assert weights == load_model("tiny")[1]


def test_a_file_called_like_a_preset_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").write_text("notes", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert runs._loaded("tiny", None).config == preset("tiny")


def test_bundles_of_older_sources_are_deleted_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from escnet_bench.latency import exported

    kept = tmp_path / "tiny-fp32-new"
    for name in ("tiny-fp32-new", "tiny-fp32-old", "tiny-fp16-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text("{}", encoding="utf-8")
    exported._forget(tmp_path, "tiny-fp32-", kept)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(exported, "_KEPT_SECONDS", -1.0)
    exported._forget(tmp_path, "tiny-fp32-", kept)
    assert {one.name for one in tmp_path.iterdir()} == {"tiny-fp32-new", "tiny-fp16-old"}
    gone = tmp_path / "tiny-fp32-gone"  # by another benchmark, meanwhile
    monkeypatch.setattr(Path, "glob", lambda *_: [gone])
    exported._forget(tmp_path, "tiny-fp32-", kept)


def test_pytorch_runs_beside_a_bundle_of_another_image_size(bundle_copy: Path) -> None:
    bundle = Bundle.open(bundle_copy)
    other = dataclasses.replace(
        bundle.manifest.model,
        trained=True,
        weights=load_model("tiny", 192)[1],
        image_size=192,
        grid=(24, 24),
        logits=(96, 96),
    )
    manifest = dataclasses.replace(bundle.manifest, model=other)
    found = subject._of_bundle(dataclasses.replace(bundle, manifest=manifest))
    assert (found.torch_model, found.image_size, found.no_torch) == ("tiny", 192, "")
    assert found.same_weights
    assert found.config == preset("tiny").at_size(192)
    torch_model = load_model("tiny", found.image_size)[0]
    assert torch_model.config == found.config


def test_weights_of_another_training_are_not_taken_for_the_bundles(bundle_copy: Path) -> None:
    subject = open_subject(
        preset=None, checkpoint=None, bundle=bundle_copy, precision=Precision.FP32, images=[]
    )
    assert subject.torch_model == "tiny"
    assert not subject.same_weights  # the bundle's are random
    assert subject.weight_bytes < sum(
        stage.bytes for stage in Bundle.open(bundle_copy).manifest.stages.values()
    )
    shutil.rmtree(bundle_copy)
