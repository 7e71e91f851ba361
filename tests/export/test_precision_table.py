"""``escnet-bench precision``: a row for each precision, and a run that goes on where it ended."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from escnet_bench.command import main
from escnet_runtime.bundle import Bundle
from escnet_runtime.images import ImageArray
from tests.bench.folders import made_dataset
from tests.export.conftest import GraphFiles, make_quick

PRECISIONS = ("fp16", "bf16", "int8+fp16", "fp8+fp16")


def words(root: Path, checkpoint: Path, *more: str) -> list[str]:
    """The command for a dataset, a folder to work in and a result file, all in ``root``."""
    dataset = str(root / "dataset")
    return [
        *("precision", "--checkpoint", str(checkpoint), "--repeats", "1", "--quiet"),
        *("--images", dataset, "--limit", "2", "--gate-images", dataset, "--gate-limit", "1"),
        *("--precisions", *PRECISIONS, "--work", str(root / "work")),
        *("--output", str(root / "result.json"), *more),
    ]


@pytest.fixture(scope="module")
def done(
    checkpoint: Path,
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a run that is complete. Do not change it."""
    root = tmp_path_factory.mktemp("precision")
    made_dataset(root / "dataset", images=3)
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch, graph_files, picture)
        assert main(words(root, checkpoint)) == 0
    return root


def rows(root: Path) -> dict[str, dict[str, Any]]:
    """Rows of the result file by precision."""
    document = json.loads((root / "result.json").read_text(encoding="utf-8"))
    return {row["precision"]: row for row in document["rows"]}


@pytest.mark.slow
def test_each_precision_has_its_figures(done: Path) -> None:
    found = rows(done)
    assert tuple(found) == PRECISIONS
    for name, row in found.items():
        stages = Bundle.open(done / "work" / name, check="hashes").manifest.stages
        assert row["bytes"] == sum(stage.bytes for stage in stages.values())
        assert (row["images"], row["categories"]) == (2, 3)
        assert 0 <= row["miou"] <= 1
        assert row["torch_miou"] == found["fp16"]["torch_miou"]
        # Untrained weights: many pixels are near-ties, and the narrower the type, the more differ.
        assert 0 < row["pixel_agreement"] <= found["fp16"]["pixel_agreement"] <= 1
        # Two blocks, three categories, five points, two images.
        assert 0 <= row["prompt_flips"] < row["prompts"] == 2 * 3 * 5 * 2
        assert row["worst_stage"] in stages
        assert row["worst_stage_l2"] > 0
    assert found["fp8+fp16"]["bytes"] < found["fp16"]["bytes"] > found["int8+fp16"]["bytes"]


@pytest.mark.slow
def test_what_is_only_emulated_is_not_timed(done: Path) -> None:
    for name, row in rows(done).items():
        if name == "bf16":
            assert row["image_seconds"] is None
            assert "emulated" in row["untimed"]
        else:
            assert row["image_seconds"] > 0
            assert row["untimed"] is None


@pytest.mark.slow
def test_the_result_says_what_it_is_of(done: Path) -> None:
    text = (done / "result.json").read_text(encoding="utf-8")
    method = json.loads(text)["conditions"]["method"]
    assert "images: dataset, of the gate: the first 1 of dataset" in method
    assert "checkpoint: mini.safetensors, sha256 " in method
    assert str(done) not in text


@pytest.mark.slow
def test_a_second_run_does_nothing_again(
    done: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def must_not_run(*_: object, **__: object) -> NoReturn:
        raise AssertionError("done already")

    for name in ("export_bundle", "checkpoint_segmenter"):
        monkeypatch.setattr(f"escnet_bench.precision_table.{name}", must_not_run)
    before = rows(done)
    assert main([*words(done, checkpoint), "--json"]) == 0
    again = {row["precision"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    for row in (*before.values(), *again.values()):
        del row["image_seconds"]  # measured anew
    assert again == before


@pytest.mark.slow
def test_figures_of_another_task_are_not_mixed_in(
    done: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(done, checkpoint, "--limit", "1")) == 2
    assert "another limit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precisions", "int4"], "'int4' is no precision; expected one of fp32"),
        (["--precisions", "fp16+fp32"], "'fp16+fp32' is no precision"),
        (["--limit", "0"], "--limit is 0"),
        (["--gate-limit", "0"], "--gate-limit is 0"),
        (["--repeats", "-1"], "--repeats is -1"),
        (["--images", "shapes:nowhere"], "shapes:nowhere"),
        (["--gate-images", "nowhere"], "nowhere"),
        (["--checkpoint", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_wrong_usage_exits_2_before_any_work(
    options: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_dataset(tmp_path / "dataset")
    assert main(words(tmp_path, checkpoint, *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_folder_of_something_else_is_left_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_dataset(tmp_path / "dataset")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine").write_text("mine")
    assert main(words(tmp_path, checkpoint)) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["mine"]
