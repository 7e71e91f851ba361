"""``escnet-bench parity``: a bundle against PyTorch and the truth, and without PyTorch."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from escnet.build import build_model
from escnet.model import EscNet
from escnet.weights import save_checkpoint
from escnet_bench.command import main
from escnet_bench.evaluate import evaluate
from escnet_bench.traced import Traced, TracedCounts
from escnet_export import ExportReport
from escnet_export.command import main as export_main
from escnet_runtime.bundle import Bundle
from escnet_runtime.dataset import Dataset
from escnet_runtime.manifest import Precision
from escnet_runtime.segmenter import Segmenter
from tests.bench.folders import made_dataset
from tests.export.conftest import Export, mini_config
from tests.model.models import randomise

_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from escnet_bench.command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return made_dataset(tmp_path / "dataset", images=3)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkpoint of the same form with other weights."""
    path = tmp_path / "other.safetensors"
    model = randomise(build_model(mini_config(), seed=4))
    save_checkpoint(model, path, trained=False, weights="others")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main(["parity", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_bundle_is_compared_with_its_checkpoint(
    mini_report: ExportReport,
    checkpoint: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, output = mini_report.bundle, tmp_path / "parity.json"
    words = ("--bundle", bundle, "--dataset", dataset, "--checkpoint", checkpoint)
    code, document = run_json(capsys, *words, "--stage-images", "1", "--output", output)
    assert code == 0
    assert json.loads(output.read_text(encoding="utf-8")) == document
    assert document["benchmark"] == "parity"
    assert document["note"] is None
    digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert document["conditions"]["bundle"]["sha256"] == digest
    (row,) = document["rows"]
    assert (row["model"], row["precision"]) == ("mini", "fp32")
    assert row["implementation"] == "onnxruntime"
    assert (row["dataset"], row["images"], row["categories"]) == ("dataset", 3, 3)
    assert row["reference"] == "torch"
    # Float32 in both: graphs differ by roundings alone.
    assert row["stages"].keys() == Bundle.open(bundle).manifest.stages.keys()
    for stage in row["stages"].values():
        assert 0 <= stage["relative_l2"] < 1e-4
        assert stage["cosine"] > 0.9999
    assert max(stage["relative_l2"] for stage in row["stages"].values()) > 0
    assert row["stage_images"] == 1
    assert row["pixel_agreement"] > 0.98
    assert row["prompts"] == [3 * 3 * 5] * 2  # images, categories, points; by block
    assert all(0 <= flips <= 2 for flips in row["prompt_flips"])
    assert row["miou_difference"] == pytest.approx(row["miou"] - row["reference_miou"], abs=2e-6)
    assert row["golden"]["pixel_agreement"] > 0.98
    assert row["golden"]["stages"].keys() == row["stages"].keys()


def test_what_differs_is_counted_by_block_and_by_pixel() -> None:
    """Two blocks of three prompts: one of the first moved, and two of the second."""
    counts = TracedCounts(classes=2, blocks=2)
    want = np.arange(18, dtype=np.int16).reshape(6, 3)
    got = want.copy()
    got[1, 0], got[3, 1], got[5, 2] = -7, -7, -7
    truth = np.array([[0, 1, 1, 255]], np.uint8)
    theirs, ours = np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 0, 1, 0]], np.uint8)
    for _ in range(2):
        counts.add(Traced(ours, got), Traced(theirs, want), truth)
    counts.add(Traced(theirs, want), Traced(theirs, want), truth)
    assert counts.flips.tolist() == [2, 4]
    assert counts.prompts.tolist() == [9, 9]
    assert (counts.equal, counts.pixels, counts.images) == (2 + 2 + 4, 12, 3)
    assert counts.ours.scores().pixel_accuracy == pytest.approx((2 + 2 + 3) / 9)
    assert counts.theirs.scores().pixel_accuracy == 1.0
    alone = TracedCounts(classes=2, blocks=2)
    alone.add(Traced(ours, got), None, truth)
    assert (alone.images, alone.pixels, alone.theirs.scores().miou) == (1, 0, None)


def test_figures_against_the_truth_are_those_of_eval(
    mini_report: ExportReport, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--bundle", mini_report.bundle, "--dataset", dataset, "--limit", "2")
    code, document = run_json(capsys, *words)
    assert code == 0
    assert "no --checkpoint or --preset was named" in document["note"]
    (row,) = document["rows"]
    assert (row["reference"], row["stages"], row["pixel_agreement"]) == (None, None, None)
    with Segmenter(mini_report.bundle, cache=None) as segmenter:
        want = evaluate(segmenter, Dataset.open(dataset), limit=2).scores
    assert row["miou"] == pytest.approx(want.miou, abs=1e-6)
    assert row["pixel_accuracy"] == pytest.approx(want.pixel_accuracy, abs=1e-6)


def test_differences_are_found(
    mini_report: ExportReport,
    other: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("escnet_bench.parity_torch._SAME_WEIGHTS", float("inf"))
    words = ("--bundle", mini_report.bundle, "--dataset", dataset, "--checkpoint", other)
    (row,) = run_json(capsys, *words)[1]["rows"]
    assert row["pixel_agreement"] < 0.9
    assert sum(row["prompt_flips"]) > 5
    assert min(stage["relative_l2"] for stage in row["stages"].values()) > 0.05


@pytest.mark.slow
def test_a_bundle_of_another_image_size_has_the_weights_of_its_checkpoint(
    checkpoint: Path, dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    """More tokens; PyTorch of that size is what it is compared with, here and in its export."""
    bundle = tmp_path / "bundle"
    words = ["--checkpoint", str(checkpoint), "--image-size", "96", "--precision", "fp32"]
    photos = ["--images", str(dataset / "images"), "--limit", "1", "--check-categories", "2"]
    assert export_main([*words, *photos, "--output", str(bundle), "-q"]) == 0
    model = Bundle.open(bundle).manifest.model
    assert (model.image_size, model.grid, model.logits) == (96, (12, 12), (48, 48))
    assert model.weights == "made for a test; positions resized from 64 px"
    capsys.readouterr()
    compared = ("--bundle", bundle, "--dataset", dataset, "--limit", "1")
    code, document = run_json(capsys, *compared, "--checkpoint", checkpoint)
    assert code == 0
    (row,) = document["rows"]
    assert row["pixel_agreement"] > 0.99
    assert max(stage["relative_l2"] for stage in row["stages"].values()) < 1e-4


@pytest.mark.slow
def test_narrow_graphs_are_fed_in_their_types(
    export: Export, checkpoint: Path, dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    """bf16 is the hard one: NumPy has none."""
    export(tmp_path / "bf16", precision=Precision.BF16, allow_parity_failure=True)
    capsys.readouterr()
    words = ("--bundle", tmp_path / "bf16", "--dataset", dataset, "--checkpoint", checkpoint)
    (row,) = run_json(capsys, *words, "--limit", "1")[1]["rows"]
    assert row["precision"] == "bf16"
    errors = [stage["relative_l2"] for stage in row["stages"].values()]
    assert 1e-4 < max(errors) < 0.1


def test_other_weights_than_the_bundles_are_refused(
    mini_report: ExportReport, other: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--bundle", mini_report.bundle, "--dataset", dataset)
    code, document = run_json(capsys, *words, "--checkpoint", other)
    assert code == 2
    assert "checkpoint other.safetensors is not what the bundle was made from" in str(document)
    code, document = run_json(capsys, *words, "--preset", "tiny")
    assert code == 2
    assert "the bundle is mini (2 blocks, 64 px, 32 dimensions)" in str(document)


def test_without_torch_it_says_what_it_could_compare_with(
    mini_report: ExportReport, checkpoint: Path, dataset: Path
) -> None:
    words = ["parity", "--bundle", str(mini_report.bundle), "--dataset", str(dataset)]
    done = without_torch(*words, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "PyTorch is not here" in document["note"]
    assert "PyTorch is not here" in done.stderr
    (row,) = document["rows"]
    assert 0 <= row["miou"] <= 1
    assert row["reference"] is row["reference_miou"] is row["prompt_flips"] is None
    golden = row["golden"]
    assert golden["pixel_agreement"] > 0.98
    assert golden["stages"]["decoder"] < 1e-3
    assert golden["failure"] is None

    done = without_torch(*words, "--checkpoint", str(checkpoint))
    assert done.returncode == 1
    assert "escnet-bench[torch]" in done.stderr
    assert "Traceback" not in done.stderr


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT_TORCH, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_people_read_a_table(
    mini_report: ExportReport, checkpoint: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", mini_report.bundle, "--dataset", dataset, "--checkpoint", checkpoint]
    assert main(["parity", *map(str, words), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    for text in ("mIoU", "equal labels", "block 1:", "esc1_sam", "relative L2"):
        assert text in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "--limit is 0, expected at least 1"),
        (["--stage-images", "-1"], "--stage-images is -1, expected at least 0"),
        (["--chunk", "0"], "--chunk is 0"),
        (["--checkpoint", "nowhere.safetensors"], "there is no checkpoint nowhere.safetensors"),
        (["--checkpoint", "a", "--preset", "tiny"], "not allowed with"),
        (["--preset", "huge"], "no preset is called 'huge'"),
        (["--dataset", "nowhere"], "there is no dataset at nowhere"),
        (["--classes-file", "CLASSES"], "got 2 categories for a dataset of 3 classes"),
    ],
)
def test_what_cannot_be_measured_is_said(
    mini: EscNet,
    mini_report: ExportReport,
    dataset: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = dataset.parent / "classes.txt"
    classes.write_text("red\nblue\n", encoding="utf-8")
    given = [str(classes) if word == "CLASSES" else word for word in options]
    words: list[str | Path] = ["--bundle", mini_report.bundle, "--dataset", dataset, *given]
    code, document = run_json(capsys, *words)
    assert code == 2
    assert message in document["error"]["message"]
