"""escnet-train: what it prints, writes and refuses."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from escnet.train import validate
from escnet.train.command import main
from escnet.train.config import read_config
from escnet.train.segmentation import SegmentationTask
from escnet.train.start import prepared
from escnet.weights import load_checkpoint
from escnet_bench.eval_command import main as eval_main
from escnet_runtime.console import Console
from tests.bench.folders import made_dataset, save_labels
from tests.train.small import small_checkpoint, small_model
from tests.train.toys import metrics

CONFIG = """
[model]
checkpoint = "{checkpoint}"
[data]
train = "{data}"
validation = "{data}"
validation_limit = 2
[training]
steps = 4
batch = 2
evaluate_every = 2
log_every = 1
save_every = 2
[rates]
small = 1e-4
large = 1e-3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, the checkpoint it starts from, and data."""
    folder = tmp_path_factory.mktemp("place")
    small_checkpoint(folder / "small.safetensors")
    made_dataset(folder / "data", images=3)
    text = CONFIG.format(checkpoint=folder / "small.safetensors", data=folder / "data")
    (folder / "config.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The folder of a run that came to its end."""
    assert main(["--config", str(place / "config.toml"), "--output", str(place / "run"), "-q"]) == 0
    return place / "run"


def run_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_it_trains_on_a_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, result = run_json(capsys, "--config", place / "config.toml", "--output", run)
    assert code == 0
    assert result["output"] == str(run)
    assert result["checkpoint"] == str(run / "last.safetensors")
    assert result["groups"] == str(run / "groups.tsv")
    assert result["best"] == str(run / "best.safetensors")
    assert result["steps"] == 4
    assert result["best_step"] in {2, 4}
    assert result["seconds"] > 0
    loaded = load_checkpoint(run / "last.safetensors")
    assert loaded.trained
    assert loaded.weights == "seeded random (seed 5), then trained on data, step 4"
    lines = metrics(run)
    assert [line["step"] for line in lines if "miou" in line] == [2, 4]
    assert result["miou"] == pytest.approx(lines[-1]["miou"], rel=1e-4)
    best = max(line["miou"] for line in lines if "miou" in line)
    assert result["best_miou"] == pytest.approx(best, rel=1e-4)


def test_it_trains_at_another_image_size(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--set", "model.image_size=128", "--set", "training.steps=1"]
    assert main(["--config", str(place / "config.toml"), *words, "--output", str(run), "-q"]) == 0
    loaded = load_checkpoint(run / "last.safetensors")
    assert loaded.model.config.clip.image_size == 128
    assert "positions resized from 64 px" in loaded.weights


def test_an_image_size_that_does_not_divide_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = place / "config.toml"
    words = ("--output", run, "--set", "model.image_size=72")
    code, found = run_json(capsys, "--config", config, *words)
    assert code == 2
    assert "expected one of 64, 128, 192, 256" in found["error"]["message"]
    assert not run.exists()


def test_validation_measures_what_escnet_eval_does(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = eval_main(
        [str(trained / "last.safetensors"), str(place / "data"), "--limit", "2", "--json"]
    )
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["miou"] == pytest.approx(found["miou"], abs=1e-5)
    assert last["pixel_accuracy"] == pytest.approx(found["pixel_accuracy"], abs=1e-5)


def test_every_section_of_a_configuration_reaches_the_task(place: Path, tmp_path: Path) -> None:
    """One that did not would train another recipe, and say nothing."""
    squeezed = ("augmentation.crop=false", "augmentation.colour=0", "augmentation.flip=0")

    def made(*overrides: str) -> tuple[SegmentationTask, dict[str, Any]]:
        config = read_config(place / "config.toml", [*squeezed, *overrides])
        task = prepared(config, console=Console(quiet=True)).task
        return task, task.collate([task.samples[index] for index in range(6)])

    task, plain = made()
    assert task.module(plain).keys() == {"loss", "accuracy"}
    assert not task.module.checkpoint
    assert [len(one) for one in plain["categories"]] == [3] * 6
    assert len({one.numpy().tobytes() for one in plain["images"]}) == 3
    _, mirrored = made("augmentation.flip=1")
    for one, other in zip(plain["images"], mirrored["images"], strict=True):
        assert torch.equal(other, one.flip(1))
    _, few = made("categories.per_image=2")
    assert [len(one) for one in few["categories"]] == [2] * 6
    many = made_dataset(tmp_path / "many", images=3)
    names = json.dumps([f"thing {index}" for index in range(20)])  # most are in no image
    (many / "classes.json").write_text(names, encoding="utf-8")
    drawn = [
        made(f"data.train={many}", "categories.per_image=9", f"training.seed={seed}")[1]
        for seed in (0, 1)
    ]
    for key in ("images", "categories"):
        pairs = zip(drawn[0][key], drawn[1][key], strict=True)
        assert not all(torch.equal(one, other) for one, other in pairs), key
    _, first = made("data.limit=1")
    assert len({one.numpy().tobytes() for one in first["images"]}) == 1
    task, taught = made("loss.correlation=0.5", "training.checkpoint_activations=true")
    assert "correlation" in task.module(taught)
    assert task.module.checkpoint


def test_groups_are_printed_before_it_starts(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(place / "config.toml"), "--output", str(tmp_path / "run")]
    assert main([*words, "--set", "training.steps=1"]) == 0
    printed = capsys.readouterr().out
    assert "attention of CLIP, matrices" in printed
    assert "SAM blocks, vectors" in printed
    assert "everything else" in printed
    assert "0.0001" in printed
    assert "in_proj_weight" in printed
    assert str(tmp_path / "run" / "groups.tsv") in printed
    assert "mIoU" in printed.splitlines()[-1]


def test_every_parameter_is_kept_with_its_group_and_rate(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained / "groups.tsv").read_text(encoding="utf-8")
    heading, *lines = [line.split("\t") for line in text.splitlines()]
    assert heading == ["group", "optimiser", "rate", "weight decay", "shape", "parameter"]
    model = small_model()
    named = {name: list(one.shape) for name, one in model.named_parameters()}
    assert {line[5]: [int(side) for side in line[4].split("×")] for line in lines} == {
        name: shape or [1] for name, shape in named.items()
    }
    assert len(lines) == len(named)
    of = {line[5]: line[:4] for line in lines}
    attention = next(name for name in named if name.endswith("in_proj_weight"))
    assert of[attention] == ["attention of CLIP, matrices", "AdamW", "0.0001", "0.0001"]
    assert of["block_projection.weight"] == [
        "everything else, matrices",
        "AdamW",
        "0.001",
        "0.0001",
    ]
    assert of["block_projection.bias"][3] == "0"
    frozen = {name for name, line in of.items() if line[0] == "frozen"}
    assert "clip.token_embedding.weight" in frozen
    # The weights that the run has changed are those of its groups.
    before, after = (
        load_file(path) for path in (place / "small.safetensors", trained / "last.safetensors")
    )
    assert {name for name in named if not torch.equal(before[name], after[name])} <= (
        named.keys() - frozen
    )
    words = ["--config", str(place / "config.toml"), "--output", str(tmp_path / "run"), "-v"]
    assert main([*words, "--set", "training.steps=1"]) == 0
    printed = [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert all(line in printed for line in [heading, *lines])
    assert (tmp_path / "run" / "groups.tsv").read_text(encoding="utf-8") == text


def test_a_run_from_before_gets_its_list_when_it_resumes(place: Path, trained: Path) -> None:
    text = (trained / "groups.tsv").read_text(encoding="utf-8")
    (trained / "groups.tsv").unlink()
    words = ["--config", str(place / "config.toml"), "--output", str(trained), "--resume", "-q"]
    assert main(words) == 0
    assert (trained / "groups.tsv").read_text(encoding="utf-8") == text


def test_the_run_keeps_the_whole_configuration(place: Path, trained: Path) -> None:
    given = read_config(place / "config.toml")
    kept = read_config(trained / "config.toml")
    assert kept == dataclasses.replace(given, output=str(trained))
    state = torch.load(trained / "state.pt", weights_only=True)
    assert state["config"] == (trained / "config.toml").read_text(encoding="utf-8")


def test_a_run_resumes_by_its_own_configuration_wherever_it_is(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved")
    config = tmp_path / "config.toml"  # of no run
    text = (place / "config.toml").read_text(encoding="utf-8")
    config.write_text(f'output = "{tmp_path / "other"}"\n{text}', encoding="utf-8")
    for words, expected in (
        (("--config", trained / "config.toml"), trained),
        (("--config", moved / "config.toml"), moved),
        (("--config", trained / "config.toml", "--output", moved), moved),
        (("--config", trained / "config.toml", "--set", f"output={moved}"), moved),
        (("--config", config, "--output", moved), moved),
    ):
        code, result = run_json(capsys, *words, "--resume")
        assert code == 0
        assert result["output"] == str(expected)
    code, result = run_json(capsys, "--config", moved / "config.toml")
    assert code == 2
    assert f"{moved} holds a run already" in result["error"]["message"]
    assert not (tmp_path / "other").exists()


def test_a_finished_run_is_not_repeated(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "state.pt").read_bytes()
    words = ("--config", place / "config.toml", "--output", trained)
    code, result = run_json(capsys, *words)
    assert code == 2
    assert "--resume" in result["error"]["message"]
    code, result = run_json(capsys, *words, "--resume", "--set", "training.log_every=7")
    assert code == 0
    assert result["steps"] == 4
    assert result["miou"] is not None
    assert (trained / "state.pt").read_bytes() == before


def test_a_run_that_broke_off_resumes_to_the_same_bits(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here an image is damaged for a while, where nobody looks before it is its turn."""
    photo = place / "data" / "images" / "photo1.jpg"  # first shown in the second step
    content = photo.read_bytes()
    words = ("--config", place / "config.toml", "--output", tmp_path / "run")
    save_first = ("--set", "training.save_every=1")
    try:
        photo.write_bytes(content[: len(content) // 2])  # its header is all there
        code, result = run_json(capsys, *words, *save_first)
    finally:
        photo.write_bytes(content)
    assert code == 2
    assert "photo1.jpg" in result["error"]["message"]
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 1
    code, _ = run_json(capsys, *words, "--resume")
    assert code == 0
    whole, parts = (
        load_file(folder / "last.safetensors") for folder in (trained, tmp_path / "run")
    )
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_another_configuration_is_not_resumed(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--config", place / "config.toml", "--output", trained, "--resume")
    code, result = run_json(capsys, *words, "--set", "training.steps=8", "--set", "rates.small=0.1")
    assert code == 2
    message = result["error"]["message"]
    assert "training.steps: 4, now 8; rates.small: 0.0001, now 0.1" in message
    assert "model.checkpoint" in message


def test_a_configuration_that_was_edited_in_the_runs_folder_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.format(checkpoint=tmp_path / "gone.safetensors", data=tmp_path / "gone")
    config, state = tmp_path / "config.toml", tmp_path / "state.pt"
    words = ("--config", config, "--output", tmp_path, "--resume")
    config.write_text(text.replace("steps = 4", "steps = 6"), encoding="utf-8")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"config": text}, f"({state}): training.steps: 4, now 6"),
        ({"config": text.replace("log_every = 1", "log_every = 3")}, "training.steps: 4, now 6"),
        ({"config": text.replace("steps = 4", "steps = 6")}, "gone.safetensors"),  # the same
        ({}, "gone.safetensors"),  # from before states said so: the file is the configuration
    ]
    for kept, message in cases:
        torch.save(kept, state)
        code, result = run_json(capsys, *words)
        assert code != 0
        assert message in result["error"]["message"]
    state.write_bytes(b"cut off")
    assert "no state of a run, or damaged" in run_json(capsys, *words)[1]["error"]["message"]


def test_sigterm_ends_a_validation(
    place: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At its first image of two, after the last step."""
    at_the_end = ("--set", "training.evaluate_every=0")
    words = ("--config", place / "config.toml", "--output", tmp_path / "run", *at_the_end)
    seen: list[int] = []

    def label_map(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **options)

    real = validate.label_map
    with monkeypatch.context() as patch:
        patch.setattr(validate, "label_map", label_map)
        code, result = run_json(capsys, *words)
    assert code == 143
    assert (result["steps"], result["stopped"]) == (4, True)
    assert seen == [1]
    code, result = run_json(capsys, *words, "--resume")
    assert code == 0
    assert result["miou"] == pytest.approx(metrics(trained)[-1]["miou"], rel=1e-4)


def test_files_that_cannot_be_used_are_refused_before_it_starts(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them at once, of training and of validation."""
    train, held_out = (made_dataset(tmp_path / name, images=3) for name in ("train", "val"))
    photo = train / "images" / "photo1.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    save_labels(held_out / "labels" / "photo0.png", np.zeros((5, 6), np.uint8))
    run = tmp_path / "run"
    sets = ("--set", f"data.train={train}", "--set", f"data.validation={held_out}")
    code, result = run_json(capsys, "--config", place / "config.toml", "--output", run, *sets)
    assert code == 2
    message = result["error"]["message"]
    assert "of 5 pairs" in message  # validation_limit is 2
    assert "photo1.jpg" in message
    assert "photo0.png has 6×5 pixels" in message
    assert not run.exists()


@pytest.mark.parametrize("key", ["data.train", "data.validation"])
def test_data_without_a_labelled_pixel_is_refused_before_it_starts(
    key: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made_dataset(tmp_path / "data", images=3)
    for path in (data / "labels").iterdir():
        labels = np.asarray(Image.open(path))
        save_labels(path, np.full_like(labels, 255))
    words = ("--config", place / "config.toml", "--output", tmp_path / "run")
    code, result = run_json(capsys, *words, "--set", f"{key}={data}")
    assert code == 2
    message = result["error"]["message"]
    assert f"no pixel of {key} ({data}) is labelled" in message
    assert ("leave data.validation out" in message) == (key == "data.validation")
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused_before_it_starts(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made_dataset(tmp_path / "data", ["thing"])
    words = ("--config", place / "config.toml", "--output", tmp_path / "run")
    code, result = run_json(capsys, *words, "--set", f"data.train={data}")
    assert code == 2
    assert "has one class, 'thing'; expected two or more" in result["error"]["message"]
    assert not (tmp_path / "run").exists()


def test_masks_of_0_and_255_are_warned_of_once(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two classes, the second has no pixel."""
    data = made_dataset(tmp_path / "data", ["background", "crack"])
    for path in (data / "labels").iterdir():
        labels = np.asarray(Image.open(path))
        save_labels(path, np.where(labels == 1, 255, labels).astype(np.uint8))
    words = ["--config", str(place / "config.toml"), "--output", str(tmp_path / "run"), "--quiet"]
    for key in ("data.train", "data.validation"):
        words += ["--set", f"{key}={data}"]
    assert main([*words, "--set", "training.evaluate_every=1"]) == 0
    # Its validation is limited to 2 images, all that there are.
    lines = [line for line in capsys.readouterr().err.splitlines() if "labelled as" in line]
    assert len(lines) == 1
    assert f"warning: no pixel of {data} is labelled as 'crack'" in lines[0]
    assert '255 (in 16 bits 65535) means "not labelled"' in lines[0]


def test_other_data_is_not_resumed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = made_dataset(tmp_path / "data", images=4), tmp_path / "run"
    words = ("--config", place / "config.toml", "--output", run, "--set", f"data.train={data}")
    assert run_json(capsys, *words)[0] == 0
    classes = data / "classes.json"
    names = json.loads(classes.read_text(encoding="utf-8"))
    classes.write_text(json.dumps(names[::-1]), encoding="utf-8")
    code, result = run_json(capsys, *words, "--resume")
    assert code == 2
    assert "data.train: other classes than before" in result["error"]["message"]
    classes.write_text(json.dumps(names), encoding="utf-8")
    for part in ("images/photo2.jpg", "labels/photo2.png"):
        (data / part).unlink()
    code, result = run_json(capsys, *words, "--resume")
    assert code == 2
    assert "data.train: 4 images, now 3" in result["error"]["message"]
    made_dataset(data, images=4)
    assert run_json(capsys, *words, "--resume")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nothing"], "there is no configuration 'nothing'"),
        (["--config", "vit-b-16-coco-stuff"], "give --output DIR"),
        (["--config", "own-folder", "--set", "data.train=none"], "there is no dataset at none"),
        (["--config", "own-folder", "--set", "training.steps=0"], "steps is 0"),
        (["--output", "x"], "--config"),
    ],
)
def test_wrong_usage(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, result = run_json(capsys, *words)
    assert code == 2
    assert message in result["error"]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["accelerate", "torch.utils.tensorboard"])
def test_a_missing_extra_is_named(
    library: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("escnet.train.")]:
        if name.rpartition(".")[2] in {"loop", "processes", "metrics", "start"}:
            monkeypatch.delitem(sys.modules, name)
    if library == "torch.utils.tensorboard":  # which imports tensorboard itself
        monkeypatch.delitem(sys.modules, library, raising=False)
        library = "tensorboard"
        for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    words = ("--config", place / "config.toml", "--output", tmp_path / "run")
    code, result = run_json(capsys, *words)
    assert code == 1
    assert "escnet[train]" in result["error"]["message"]
    assert library in result["error"]["message"]


def test_processes_that_are_not_the_main_one_are_silent(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    words = ["--config", str(place / "config.toml"), "--output", str(tmp_path / "run"), "-v"]
    assert main([*words, "--json", "--set", "training.steps=1"]) == 0
    assert capsys.readouterr().out == ""


def start(*words: str | Path, processes: int = 1) -> subprocess.Popen[str]:
    """The command in processes of its own."""
    launch = ["-m"]
    if processes > 1:
        # A free port, which torchrun finds by itself.
        port = ["--standalone", "--local-addr", "127.0.0.1"]
        launch += ["torch.distributed.run", "--nproc-per-node", str(processes), *port, "-m"]
    return subprocess.Popen(
        [sys.executable, *launch, "escnet.train", *map(str, words), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_sigterm_saves_first(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--config", place / "config.toml", "--output", run, "--set", "training.steps=100000")
    process = start(*words, "--set", "training.save_every=100000")
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=1800)
    result = json.loads(output)
    assert process.returncode == 143
    assert result["stopped"]
    assert result["steps"] >= 1
    assert (run / "state.pt").is_file()
    assert (run / "last.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(place: Path, tmp_path: Path) -> None:
    """Of the real model: what is trained has gradients, or DistributedDataParallel would say so.

    Scenes of the small world, all of whose pixels are labelled, so that means over two batches are
    those over both.
    """
    common: list[str] = []
    for change in (
        'data.train="shapes:train"',
        "data.limit=20",
        # Room for all that an image shows: of too many, some pixels would not count, and the mean
        # over both images would not be the mean of their means.
        "categories.per_image=12",
        "training.steps=3",
        "training.batch=1",
    ):
        common += ["--set", change]
    # Without a validation.
    text = (place / "config.toml").read_text(encoding="utf-8")
    config = tmp_path / "config.toml"
    lines = [line for line in text.splitlines() if not line.startswith("validation")]
    config.write_text("\n".join(lines), encoding="utf-8")
    words = ["--config", str(config), *common]
    assert main([*words, "-q", "--output", str(tmp_path / "one"), "--set", "training.batch=2"]) == 0
    process = start(*words, "--output", tmp_path / "two", processes=2)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0
    assert json.loads(output)["steps"] == 3  # printed once
    before = load_file(place / "small.safetensors")
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    # AdamW turns a gradient that is 0 but for rounding into a step of full size, so not every
    # number agrees; what the runs learned does.
    learned = sum(float((one[name] - before[name]).square().sum()) for name in one)
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one)
    assert apart < 1e-3 * learned
    norms = [metrics(tmp_path / name)[0]["gradient_norm"] for name in ("one", "two")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
