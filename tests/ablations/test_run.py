"""The command end to end with a toy model: it trains, measures, resumes, and writes its table."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import escnet.ablations.run
from escnet import EscNetConfig, build_model, preset
from escnet.ablations.__main__ import main
from escnet.ablations.run import Foundations
from escnet.ablations.variants import VARIANTS, changed
from escnet.build import build_clip
from escnet.foundations.sam import build_sam
from escnet.foundations.scenes import TrainingScenes
from escnet.train.data import TrainingSample
from escnet.weights import load_clip, load_sam
from escnet_runtime.errors import InputError

Command = Callable[..., dict[str, Any]]


def toy() -> EscNetConfig:
    """A quick ESC-Net on an 8×8 grid, with one block."""
    tiny = preset("tiny")
    clip = dataclasses.replace(
        tiny.clip, image_size=64, vision_layers=3, text_layers=1, skip_layers=(0, 1)
    )
    return dataclasses.replace(tiny, clip=clip, blocks=1)


@pytest.fixture(scope="module")
def foundations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``make tiny`` leaves it, with weights that nobody trained."""
    folder = tmp_path_factory.mktemp("foundations")
    for name, module in (("clip-128", build_clip(toy())), ("sam", build_sam(toy()))):
        (folder / name).mkdir()
        state = {key: one.contiguous() for key, one in module.state_dict().items()}
        save_file(state, folder / name / "last.safetensors")
    return folder


@pytest.fixture
def command(
    foundations: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs it with the toy in place of ``tiny``; gives exit code and JSON."""
    monkeypatch.setattr(escnet.ablations.run, "preset", lambda name: toy())

    def run(output: Path, *words: str, only: tuple[str, ...] = ("base",)) -> dict[str, Any]:
        code = main(
            [
                *("--foundations", str(foundations), "--output", str(output), "--only", *only),
                *("--scenes", "2", "--json", *words),
            ]
        )
        return {"code": code, **json.loads(capsys.readouterr().out)}

    return run


def test_results_table_and_picture_are_written(command: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = (
        "<!-- results of out: written by python -m escnet.ablations --page -->",
        "<!-- end of results of out -->",
    )
    page.write_text(f"Before.\n\n{marks[0]}\nold\n{marks[1]}\n\nAfter.\n")
    out = tmp_path / "out"
    told = command(
        out, "--steps", "1", "--page", str(page), only=("clip", "base", "without-sam", "random-sam")
    )
    assert told["code"] == 0
    keys = [(one["variant"], one["seed"]) for one in told["results"]]
    runs = [(name, seed) for name in ("base", "without-sam", "random-sam") for seed in (0, 1)]
    assert keys == [("clip", None), *runs]
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == told["results"]
    for one in told["results"]:
        assert set(one["figures"]) >= {"miou", "pixel_accuracy", "miou_held_out"}
        assert one["conditions"]["budget"]["steps"] == 1
        assert one["conditions"]["names"] == 194
        assert (one["trained_parameters"] > 0) == (one["variant"] != "clip")
    table = (out / "table.md").read_text()
    assert "| none |" in table
    assert "Not run yet: points," in table
    assert f"{marks[0]}\n\n{table}" in page.read_text()
    assert page.read_text().startswith("Before.")
    assert page.read_text().endswith("\n\nAfter.\n")
    assert "old" not in page.read_text()
    for picture in (out / "table.png", tmp_path / "pictures" / "out.png"):
        with Image.open(picture) as opened:
            assert opened.format == "PNG"
    assert not list(out.rglob("state.pt"))
    assert (out / "base" / "seed-1" / "last.safetensors").is_file()


def test_a_stopped_command_goes_on_as_if_it_had_not_been(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--steps", "3", "--seeds", "0")
    whole = command(tmp_path / "whole", *words)

    class Stopping(TrainingScenes):
        def __getitem__(self, index: int) -> TrainingSample:
            if index == 5:  # of the second step
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    with monkeypatch.context() as patch:
        patch.setattr(escnet.ablations.run, "TrainingScenes", Stopping)
        stopped = command(tmp_path / "parts", *words)
    assert stopped["code"] == 128 + signal.SIGTERM
    assert stopped["stopped"]
    assert stopped["results"] == []
    assert (tmp_path / "parts" / "base" / "seed-0" / "state.pt").is_file()
    again = command(tmp_path / "parts", *words)
    assert again["code"] == 0
    assert again["results"][0]["figures"] == whole["results"][0]["figures"]
    weights = [
        tmp_path / one / "base" / "seed-0" / "last.safetensors" for one in ("whole", "parts")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_finished_is_not_trained_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command(tmp_path, "--steps", "1", "--seeds", "0")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    with monkeypatch.context() as patch:
        patch.setattr(escnet.ablations.run, "train", never)
        again = command(tmp_path, "--steps", "1", "--seeds", "0")
    assert again["results"] == first["results"]
    other = command(tmp_path, "--steps", "2", "--seeds", "0")
    assert other["code"] == 2
    assert "holds runs with another budget, loop" in other["error"]["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "circles"), "no variant is called 'circles'; there are clip, base,"),
        (("--seeds", "61"), "--seeds has 61; expected 0 to 60"),
        (("--scenes", "0"), "--scenes is 0; expected at least 1"),
        (("--steps", "0"), "steps is 0; expected at least 1"),
    ],
)
def test_wrong_arguments_are_refused(
    command: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    told = command(tmp_path, *words)
    assert told["code"] == 2
    assert message in told["error"]["message"]


def test_a_folder_without_foundations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip-128/last\.safetensors is not there; expected .*"):
        Foundations.of(tmp_path)


def test_the_foundations_in_the_checkout_fit_the_preset() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "foundations"
    foundations = Foundations.of(folder)
    model = build_model(preset("tiny"), seed=0)
    load_clip(model, str(foundations.clip))
    load_sam(model, foundations.sam)
    # Each says where it comes from.
    for stage in ("clip-128", "sam"):
        found = json.loads((folder / stage / "stage.json").read_text(encoding="utf-8"))
        assert len(found["commit"]) == 40
        assert found["figures"]


def test_every_variant_is_one_change_of_the_base() -> None:
    base = preset("tiny")
    names = [variant.name for variant in VARIANTS]
    assert len(names) == len(set(names)) == 18
    for variant in VARIANTS:
        config = changed(base, variant.change)
        assert (config == base) == (not variant.change)
        assert len(variant.change) + (not variant.sam_weights) == (1 if variant.part else 0)
        with torch.device("meta"):
            build_model(config)
