"""The training loop in one process: what it trains, saves, resumes and refuses."""

import itertools
import logging
import math
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from escnet.train import loop
from escnet.train.fingerprint import DataFingerprint
from escnet.train.loop import train
from escnet.train.processes import accelerator_of
from escnet_runtime.errors import EscNetError, ImageError, InputError
from tests.train.toys import ToyTask, metrics, settings, weights


class Interrupted(Exception):
    """What a test breaks a run off with."""


def broken_off(folder: Path, sample: int, **changes: Any) -> None:
    """Train until a sample is asked for."""

    def hook(index: int) -> None:
        if index == sample:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(ToyTask(hook=hook), settings(**changes), folder)


def assert_same(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_it_trains_saves_and_reports(tmp_path: Path) -> None:
    task = ToyTask()
    before = {name: one.clone() for name, one in task.module.state_dict().items()}
    outcome = train(task, settings(evaluate_every=5), tmp_path / "run")
    after = weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"first.weight", "first.bias", "second.weight", "second.bias"}
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "quality" in line] == [5, 10, 12]
    best = max((line for line in lines if "quality" in line), key=lambda line: line["quality"])
    assert outcome.best == pytest.approx(best["quality"], rel=1e-5)
    assert outcome.best_step == best["step"]
    assert outcome.figures["quality"] == pytest.approx(lines[-1]["quality"], rel=1e-5)
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_what_is_trained_at_which_rate_is_listed(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "run")
    assert (tmp_path / "run" / "groups.tsv").read_text(encoding="utf-8").splitlines() == [
        "group\toptimiser\trate\tweight decay\tshape\tparameter",
        "first\tAdamW\t0.001\t0.1\t8×4\tfirst.weight",
        "first\tAdamW\t0.001\t0.1\t8\tfirst.bias",
        "second\tAdamW\t0.01\t0\t1×8\tsecond.weight",
        "second\tAdamW\t0.01\t0\t1\tsecond.bias",
        "frozen\t-\t0\t0\t3\tfrozen",
    ]


def test_rates_rise_and_fall_in_each_group(tmp_path: Path) -> None:
    train(ToyTask(), settings(warmup=4, floor=0.1), tmp_path / "run")
    rates = [line["rate"] for line in metrics(tmp_path / "run") if "rate" in line]
    assert rates[:4] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(
        1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2), rel=1e-5
    )


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 3}, {"precision": "bf16"}, {"workers": 2}, {"clip_norm": 0.0}]
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    each = 4 * changes.get("accumulate", 1)
    train(ToyTask(), settings(**changes), tmp_path / "whole")
    # In the middle of a step: with accumulation, between two of its forward passes.
    broken_off(tmp_path / "parts", 6 * each + each // 2, **{**changes, "workers": 0})
    task = ToyTask()
    train(task, settings(**changes), tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    steps = [line["step"] for line in metrics(tmp_path / "parts") if "loss" in line]
    assert steps == list(range(1, 13))


def test_workers_read_the_same_samples(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "none")
    train(ToyTask(), settings(workers=2), tmp_path / "two")
    assert_same(tmp_path / "none", tmp_path / "two")


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    train(ToyTask(), settings(batch=8), tmp_path / "large")
    train(ToyTask(), settings(batch=2, accumulate=4), tmp_path / "small")
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in large:
        torch.testing.assert_close(large[name], small[name])


def test_figures_of_accumulated_batches_are_those_of_one_large_batch(tmp_path: Path) -> None:
    train(ToyTask(), settings(batch=8), tmp_path / "large")
    train(ToyTask(), settings(batch=2, accumulate=4), tmp_path / "small")
    lines = [metrics(tmp_path / name) for name in ("large", "small")]
    for large, small in zip(*lines, strict=True):
        for name in large.keys() - {"seconds"}:
            assert small[name] == pytest.approx(large[name], rel=1e-3), name


@pytest.mark.parametrize("clip_norm", [0.0, 0.01, 100.0])
def test_gradients_are_cut_to_the_norm_that_is_asked_for(tmp_path: Path, clip_norm: float) -> None:
    """What AdamW remembers of its first gradient is a tenth of it."""
    train(ToyTask(), settings(steps=1, warmup=0, clip_norm=clip_norm), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["optimizer"]["state"]
    used = torch.cat([one["exp_avg"].flatten() for one in state.values()]).norm().item() / 0.1
    norm = metrics(tmp_path / "run")[0]["gradient_norm"]  # before it is cut
    assert 0.01 < norm < 100
    assert used == pytest.approx(min(norm, clip_norm or math.inf), rel=1e-3)


def test_how_often_gradients_are_added_up_is_not_the_environments_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's launcher sets such a variable."""
    train(ToyTask(), settings(accumulate=2), tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "5")
    train(ToyTask(), settings(accumulate=2), tmp_path / "set")
    assert_same(tmp_path / "plain", tmp_path / "set")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_its_own_error(tmp_path: Path, workers: int) -> None:
    def hook(index: int) -> None:
        if index == 21:
            raise ImageError("photo.jpg is cut off")

    with pytest.raises(ImageError) as caught:
        train(ToyTask(hook=hook), settings(workers=workers), tmp_path / "run")
    assert str(caught.value) == "photo.jpg is cut off"


def test_resuming_without_a_state_starts_anew(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "a")
    train(ToyTask(), settings(), tmp_path / "b", resume=True)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_resuming_a_finished_run_gives_its_outcome_again(tmp_path: Path) -> None:
    first = train(ToyTask(), settings(), tmp_path / "run")
    task = ToyTask()
    again = train(task, settings(), tmp_path / "run", resume=True)
    assert again == first
    assert task.validations == 0


def test_a_run_killed_while_validating_validates_again(tmp_path: Path) -> None:
    class Dies(ToyTask):
        def validate(self, check: Callable[[], None], /) -> Any:
            if self.validations == 1:
                raise Interrupted
            return super().validate(check)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = settings(evaluate_every=3, save_every=100)
    expected = train(ToyTask(), options, whole)
    with pytest.raises(Interrupted):
        train(Dies(), options, parts)
    assert train(ToyTask(), options, parts, resume=True).best_step == expected.best_step
    assert [line for line in metrics(parts) if "quality" in line and line["step"] == 6]
    assert len(metrics(parts)) == len(metrics(whole))
    assert_same(whole, parts)


def test_asked_to_stop_when_all_is_done_it_is_finished(tmp_path: Path) -> None:
    """In the last step, with nothing to validate; or in the last piece of the validation."""

    class Unvalidated(ToyTask):
        def validate(self, check: Callable[[], None], /) -> Mapping[str, float]:
            return {}

    class ValidatedLate(ToyTask):
        def validate(self, check: Callable[[], None], /) -> Mapping[str, float]:
            figures = super().validate(check)
            signal.raise_signal(signal.SIGTERM)
            return figures

    def hook(index: int) -> None:
        if index == 46:
            signal.raise_signal(signal.SIGTERM)

    train(Unvalidated(hook=hook, score=None), settings(), tmp_path / "a")
    outcome = train(ValidatedLate(), settings(), tmp_path / "b")
    assert outcome.best_step == 12
    for name in ("a", "b"):
        state = torch.load(tmp_path / name / "state.pt", weights_only=True)
        assert (state["progress"]["step"], state["progress"]["evaluated"]) == (12, 12)


def test_half_a_line_of_metrics_is_cut_off(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 26)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train(ToyTask(), settings(), tmp_path / "run", resume=True)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [*range(1, 13), 12]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        train(ToyTask(), settings(), tmp_path / "run")
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_another_tasks_state_is_refused(tmp_path: Path) -> None:
    train(ToyTask(), settings(), tmp_path / "run")
    other = ToyTask()
    other.name = "another"
    with pytest.raises(InputError, match="state of a run of 'toy', this is 'another'"):
        train(other, settings(), tmp_path / "run", resume=True)


def fingerprint(**changes: Any) -> DataFingerprint:
    return replace(DataFingerprint(images=20, names="abc", classes="def"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 19}, "data.train: 20 images, now 19"),
        ({"images": 19, "names": "x"}, "data.train: 20 images, now 19"),
        ({"names": "x"}, "data.train: other images than before, or other names of them"),
        ({"classes": "x"}, "data.train: other classes than before, or in another order"),
    ],
)
def test_a_run_is_not_resumed_with_other_data(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run, data = tmp_path / "run", {"data.train": fingerprint(), "data.validation": fingerprint()}
    train(ToyTask(), settings(), run, data=data)
    now = {**data, "data.train": fingerprint(**changes)}
    with pytest.raises(InputError, match=f"started with: {message}") as caught:
        train(ToyTask(), settings(), run, resume=True, data=now)
    assert "data.validation" not in str(caught.value)
    assert "model.checkpoint" in str(caught.value)
    train(ToyTask(), settings(), run, resume=True, data=data)


@pytest.mark.parametrize("kept", [True, False])
def test_a_state_that_does_not_say_its_data_resumes(
    tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broken_off(tmp_path / "run", 26)
    state = tmp_path / "run" / "state.pt"
    content = torch.load(state, weights_only=True)
    if not kept:
        del content["data"]  # as it was written before there was such a thing
        torch.save(content, state)
    caplog.set_level(logging.INFO)
    data = {"data.train": fingerprint()}
    train(ToyTask(), settings(), tmp_path / "run", resume=True, data=data)
    assert "does not say with which data" in caplog.text
    train(ToyTask(), settings(), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
    now = {"data.train": fingerprint(images=19)}
    with pytest.raises(InputError, match="now 19"):  # this time it does
        train(ToyTask(), settings(), tmp_path / "run", resume=True, data=now)


def test_a_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 26)
    task = ToyTask()
    task.module.second = torch.nn.Linear(8, 2)
    with pytest.raises(InputError, match="does not fit this run"):
        train(task, settings(), tmp_path / "run", resume=True)


def test_a_state_behind_the_last_step_is_refused(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 38)
    with pytest.raises(InputError, match="is of step 8; this run ends at 5"):
        train(ToyTask(), settings(steps=5), tmp_path / "run", resume=True)


@pytest.mark.parametrize("damage", [b"", b"not a state", None])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    broken_off(tmp_path / "run", 26)
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(InputError, match="damaged"):
        train(ToyTask(), settings(), tmp_path / "run", resume=True)


def test_a_state_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", 26)
    state = tmp_path / "run" / "state.pt"
    torch.save({**torch.load(state, weights_only=True), "format": 2}, state)
    with pytest.raises(InputError, match="format 2, this version of escnet reads 1"):
        train(ToyTask(), settings(), tmp_path / "run", resume=True)


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    found: list[str] = []

    def hook(index: int) -> None:
        if index == 17:
            with pytest.raises(InputError) as caught:
                train(ToyTask(), settings(), tmp_path / "run", resume=True)
            found.append(str(caught.value))

    train(ToyTask(hook=hook), settings(), tmp_path / "run")
    assert "another process is training in" in found[0]
    train(ToyTask(), settings(), tmp_path / "run", resume=True)  # the lock is gone


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot train in"):
        train(ToyTask(), settings(), tmp_path / "file" / "run")


def test_a_full_disk_leaves_the_last_state(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def hook(index: int) -> None:
        if index == 20:  # in step 6; the state of step 4 is there
            # A file that cannot grow is what a full disk looks like to whoever writes it.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(EscNetError, match="What was saved before is unharmed"):
            train(ToyTask(hook=hook), settings(log_every=100), run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["step"] == 4
    assert not [path for path in run.iterdir() if ".tmp-" in path.name]
    train(ToyTask(), settings(log_every=100), tmp_path / "whole")
    train(ToyTask(), settings(log_every=100), run, resume=True)
    assert_same(run, tmp_path / "whole")


def test_a_full_disk_leaves_no_half_configuration(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(EscNetError, match=r"cannot write .*config\.toml"):
            train(ToyTask(), settings(), tmp_path / "run", config="# long\n" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["groups.tsv", "run.lock"]
    train(ToyTask(), settings(), tmp_path / "run", config="# short\n")
    assert (tmp_path / "run" / "config.toml").read_text() == "# short\n"


def test_a_loss_that_is_not_finite_is_an_error_and_is_not_saved(tmp_path: Path) -> None:
    class Diverges(ToyTask):
        @property
        def collate(self) -> Any:
            def collated(points: list[Any]) -> dict[str, torch.Tensor]:
                batch: dict[str, torch.Tensor] = ToyTask().collate(points)
                self.batches += 1
                return {**batch, "y": batch["y"] * (math.inf if self.batches == 6 else 1.0)}

            return collated

        batches = 0

    with pytest.raises(EscNetError, match="gradient of step 6 is not finite"):
        train(Diverges(), settings(save_every=1), tmp_path / "run")
    assert all(one.isfinite().all() for one in weights(tmp_path / "run").values())


def test_overflow_in_fp16_skips_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler starts too high on purpose; the first steps overflow and are skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    _use_scaler(monkeypatch, scaler)
    task = ToyTask()
    train(task, settings(steps=40, warmup=2), tmp_path / "run")
    norms = [line["gradient_norm"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert norms[0] is None  # infinite
    assert norms[-1] is not None
    assert scaler.get_scale() < 2.0**24
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["scaler"]["scale"] == scaler.get_scale()


def test_endless_overflow_in_fp16_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_scaler(monkeypatch, torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.999))
    with pytest.raises(EscNetError, match="50 steps in a row"):
        train(ToyTask(), settings(steps=60), tmp_path / "run")


def _use_scaler(monkeypatch: pytest.MonkeyPatch, scaler: torch.amp.GradScaler) -> None:
    """Let accelerate train in fp16 on the CPU, which it does not do by itself."""
    real = accelerator_of

    @contextmanager
    def with_scaler(options: Any) -> Iterator[Any]:
        with real(options) as accelerator:
            accelerator.scaler = scaler
            accelerator.native_amp = True
            accelerator.state._mixed_precision = "fp16"
            yield accelerator

    monkeypatch.setattr(loop, "accelerator_of", with_scaler)


def test_fp16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="fp16, which needs a GPU"):
        train(ToyTask(), settings(precision="fp16"), tmp_path / "run")


def test_a_run_leaves_accelerate_the_module_and_random_numbers_as_they_were(tmp_path: Path) -> None:
    before = dict(AcceleratorState._shared_state), dict(GradientState._shared_state)
    task = ToyTask()
    forward = type(task.module).forward
    state = torch.get_rng_state()
    train(task, settings(precision="bf16"), tmp_path / "bf16")
    assert "forward" not in vars(task.module)
    assert type(task.module).forward is forward
    assert torch.equal(torch.get_rng_state(), state)
    assert (dict(AcceleratorState._shared_state), dict(GradientState._shared_state)) == before
    # The same task again, at another precision and accumulation.
    train(task, settings(accumulate=2), tmp_path / "no")
    twin = ToyTask()
    train(twin, settings(precision="bf16"), tmp_path / "twin-bf16")
    train(twin, settings(accumulate=2), tmp_path / "twin-no")
    assert_same(tmp_path / "no", tmp_path / "twin-no")


def test_on_a_cpu_denormal_numbers_are_zeros_while_it_trains() -> None:
    def denormal() -> bool:
        return bool(torch.tensor([1e-39]).mul(0.5) != 0)

    assert denormal()
    with accelerator_of(settings()):
        assert denormal() == torch.accelerator.is_available()
    assert denormal()
    torch.set_flush_denormal(True)  # whoever had it so keeps it so
    try:
        with accelerator_of(settings()):
            assert not denormal()
        assert not denormal()
    finally:
        torch.set_flush_denormal(False)


def test_it_runs_in_a_thread(tmp_path: Path) -> None:
    """Where signals cannot be handled."""
    found: list[loop.Outcome] = []
    thread = threading.Thread(
        target=lambda: found.append(train(ToyTask(), settings(), tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert found[0].best_step == 12


def test_public_names() -> None:
    assert loop.__all__ == ["BEST", "LAST", "Outcome", "Stopped", "train"]
