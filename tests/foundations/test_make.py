"""``make tiny`` in seconds: every stage once, a stop, and going on."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from escnet import EscNet, build_model
from escnet.foundations import __main__ as command
from escnet.foundations import make
from escnet.foundations.clip import CropPool
from escnet.foundations.recipe import TINY, TINY_192, TWO_CORES, Recipe
from escnet.presets import preset
from escnet.train.categories import CategorySampling
from escnet.train.settings import LoopSettings
from escnet.weights import load_checkpoint
from escnet_runtime.console import Console
from escnet_runtime.errors import InputError

_LOOP = LoopSettings(steps=2, batch=2, log_every=1, save_every=1)


def toy(steps: int = 2) -> Recipe:
    """The recipe with all its stages, two steps and a few scenes each."""
    loop = dataclasses.replace(_LOOP, steps=steps)
    return dataclasses.replace(
        TINY_192,
        clip=tuple(
            dataclasses.replace(
                phase, pool=CropPool(side=phase.pool.side, scenes=2, crops=2), loop=_LOOP
            )
            for phase in TINY_192.clip
        ),
        sam=_LOOP,
        escnet=tuple(
            dataclasses.replace(phase, loop=loop, categories=CategorySampling(per_image=4))
            for phase in TINY_192.escnet
        ),
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "_VALIDATION_SCENES", 1)
    monkeypatch.setattr(make, "_CORRELATION_SCENES", 1)
    monkeypatch.setattr("escnet.foundations.sam._VALIDATION_SCENES", 1)


@pytest.mark.slow
def test_all_stages_give_a_checkpoint_with_its_provenance(tmp_path: Path) -> None:
    path = make.make_tiny(tmp_path, recipe=toy(), console=Console(quiet=True))
    loaded = load_checkpoint(path)
    assert loaded.trained
    assert loaded.model.config.name == "tiny"
    document = json.loads((tmp_path / make.PROVENANCE).read_text(encoding="utf-8"))
    stages = ["clip-64", "clip-128", "sam", "esc-net", "esc-net-wide", "esc-net-crowd"]
    assert list(document["stages"]) == [*stages, "esc-net-192"]
    assert loaded.model.config == preset("tiny")
    assert all(stage["figures"] for stage in document["stages"].values())
    # What one stage leaves, the next one starts from.
    clip = loaded.model.clip.state_dict()
    from safetensors.torch import load_file

    before = load_file(tmp_path / "clip-128" / "last.safetensors")
    frozen = [name for name in before if ".mlp." in name or "ln_" in name]
    assert frozen
    assert all(torch.equal(clip[name], before[name]) for name in frozen)
    # A second call repeats nothing.
    changed = (tmp_path / "clip-64" / "last.safetensors").stat().st_mtime_ns
    make.make_tiny(tmp_path, recipe=toy(), console=Console(quiet=True))
    assert (tmp_path / "clip-64" / "last.safetensors").stat().st_mtime_ns == changed


def test_a_stage_goes_on_by_the_recipe_that_it_was_begun_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tiny-192`` begins with the stages of ``tiny``; those of ``two-cores`` are others."""
    made: list[str] = []

    def stage(folder: Path, *_: object) -> Path:
        made.append(folder.name)
        return folder / "last.safetensors"

    monkeypatch.setattr(make, "_stage", stage)
    monkeypatch.setattr(make, "_write", lambda folder, *_: folder / make.CHECKPOINT)
    for recipe in (TINY, TINY_192):
        make.make_tiny(tmp_path / "run", recipe=recipe, console=Console(quiet=True))
    assert made[-1] == "esc-net-192"
    made.clear()
    with pytest.raises(InputError, match=r"begun by another recipe than two-cores: .* loop, pool"):
        make.make_tiny(tmp_path / "run", recipe=TWO_CORES, console=Console(quiet=True))
    assert made == []


def test_sigterm_is_no_failure_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path, *, recipe: Recipe, console: Console) -> Path:
        task = _Signalling()
        return make._stage(folder, lambda: task, dataclasses.replace(_LOOP, steps=9), console)

    from tests.train.toys import ToyTask

    class _Signalling(ToyTask):
        """Asks to stop in its first batch."""

        @property
        def collate(self) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().collate

    monkeypatch.setattr(command, "make_tiny", interrupted)
    monkeypatch.setattr("sys.argv", ["foundations", "--output", str(tmp_path / "run"), "--json"])
    assert command.main() == 128 + signal.SIGTERM
    captured = capsys.readouterr()
    assert json.loads(captured.out)["stopped"]
    assert "run the same command again" in captured.err
    assert not (tmp_path / "run" / "stage.json").exists()
    assert (tmp_path / "run" / "state.pt").is_file()


def test_weights_for_another_size_are_not_shipped_as_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object, **__: object) -> Path:
        raise AssertionError("training was begun")

    monkeypatch.setattr(command, "make_tiny", forbidden)
    words = ["--output", str(tmp_path / "run"), "--ship", str(tmp_path), "--recipe", "tiny-192"]
    monkeypatch.setattr("sys.argv", ["foundations", *words, "--json"])
    assert command.main() == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "ends at 192 px" in message
    assert "leave --ship out" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [128, 192])
def test_a_phase_is_validated_at_the_size_that_it_is_for(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    seen: list[EscNet] = []

    def validate(model: EscNet, images: object, *, check: object) -> dict[str, float]:
        seen.append(model)
        return {"miou": 0.5}

    monkeypatch.setattr(make, "validate", validate)
    model = build_model(preset("tiny"), seed=0)
    assert make._validate(model, lambda: None, size=size) == {"miou": 0.5}
    (view,) = seen
    assert view.config == preset("tiny").at_size(size)
    assert next(view.decoder.parameters()) is next(model.decoder.parameters())
    assert not view.training


def test_a_processor_without_bf16_trains_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train.toys import ToyTask

    loop = dataclasses.replace(_LOOP, precision="bf16")
    for slow, precision in ((True, "no"), (False, "bf16")):
        monkeypatch.setattr(make, "bf16_is_slow", lambda slow=slow: slow)
        make._stage(tmp_path / precision, ToyTask, loop, Console(quiet=True))
        stage = json.loads((tmp_path / precision / "stage.json").read_text(encoding="utf-8"))
        assert stage["settings"]["precision"] == precision
