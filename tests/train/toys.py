"""A task that trains in milliseconds, and a program that runs it in processes of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from escnet.train.settings import LoopSettings
from escnet.train.task import ParameterGroup
from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import InputError

__all__ = ["ToyTask", "settings", "start_toy", "weights"]


class _Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.frozen = nn.Parameter(torch.ones(3))
        with torch.no_grad():
            for parameter in (*self.first.parameters(), *self.second.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self.second(torch.tanh(self.first(batch["x"])))[:, 0]
        return {"loss": (found - batch["y"]).square().mean(), "size": found.abs().mean()}


class _Points:
    """Sample ``index``; ``hook`` is called first, to make trouble."""

    def __init__(self, hook: Callable[[int], None] | None) -> None:
        self.hook = hook

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], float]:
        if self.hook:
            self.hook(index)
        x = np.random.Generator(np.random.PCG64((1, index))).normal(size=4).astype(np.float32)
        return x, float(np.sin(x).sum())


class ToyTask:
    """Regression of a sum of sines."""

    name = "toy"

    def __init__(
        self, *, hook: Callable[[int], None] | None = None, score: str | None = "quality"
    ) -> None:
        self.module: nn.Module = _Regression()
        self.samples = _Points(hook)
        self.score = score
        self.validations = 0

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        named = dict(self.module.named_parameters())
        first = {name: one for name, one in named.items() if name.startswith("first")}
        second = {name: one for name, one in named.items() if name.startswith("second")}
        return (
            ParameterGroup(name="first", parameters=first, rate=1e-3, weight_decay=0.1),
            ParameterGroup(name="second", parameters=second, rate=1e-2, weight_decay=0.0),
        )

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return _collated

    def validate(self) -> Mapping[str, float]:
        assert not self.module.training
        assert not torch.is_grad_enabled()
        self.validations += 1
        points = [_Points(None)[10_000 + index] for index in range(16)]
        losses = self.module(_collated(points))
        return {"quality": -float(losses["loss"])}

    def save(self, path: Path, *, step: int) -> None:
        tensors = {name: one.detach().clone() for name, one in self.module.state_dict().items()}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(step)})


def _collated(points: list[Any]) -> dict[str, Tensor]:
    return {
        "x": torch.from_numpy(np.stack([x for x, _ in points])),
        "y": torch.tensor([y for _, y in points], dtype=torch.float32),
    }


def settings(**changes: Any) -> LoopSettings:
    """Twelve steps of four samples; ``changes`` replace some."""
    return LoopSettings(
        **{"steps": 12, "batch": 4, "warmup": 2, "log_every": 1, "save_every": 4, **changes}
    )


def weights(folder: Path) -> dict[str, Tensor]:
    """The newest weights of a run."""
    return load_file(folder / "last.safetensors")


def start_toy(
    folder: Path, *options: str, processes: int = 1, **changes: Any
) -> subprocess.Popen[str]:
    """Start this module's program: train in ``folder``.

    Args:
        folder: of the run.
        options: "resume"; "SIGNAL@SAMPLE", such as "SIGKILL@20", sends itself a signal when that
            sample is asked for; "SIGKILL@save-N" kills it half-way into writing the N-th state.
        processes: more than one are started by torchrun.
        changes: of :func:`settings`.
    """
    program = [sys.executable, "-m"]
    if processes > 1:
        port = ["--master-port", "0"]
        program += ["torch.distributed.run", "--nproc-per-node", str(processes), *port, "-m"]
    command = [*program, "tests.train.toys", str(folder), json.dumps(changes), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _main(folder: str, changes: str, *options: str) -> int:
    from escnet.train.loop import train
    from escnet.train.stop import Stopped

    hook = None
    for option in options:
        kind, _, when = option.partition("@")
        if when.startswith("save-"):
            _kill_while_saving(int(when.removeprefix("save-")))
        elif when:
            hook = _signal_at(getattr(signal, kind), int(when))
    task = ToyTask(hook=hook)
    if "unused" in options:
        task.module.register_parameter("unused", nn.Parameter(torch.ones(1)))
    try:
        outcome = train(
            task, settings(**json.loads(changes)), Path(folder), resume="resume" in options
        )
    except Stopped as stop:
        print(stop)
        return 128 + stop.number
    except InputError as error:
        print("refused:", error)
        return 2
    state = {name: value.tolist() for name, value in task.module.state_dict().items()}
    rank = os.environ.get("RANK", "0")
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(state))
    if rank == "0":
        print(json.dumps({"best": outcome.best, "best_step": outcome.best_step}))
    return 0


def _signal_at(number: int, sample: int) -> Callable[[int], None]:
    def hook(index: int) -> None:
        if index == sample:
            os.kill(os.getpid(), number)

    return hook


def _kill_while_saving(nth: int) -> None:
    saves = 0
    real = torch.save

    def save(content: Any, path: Path) -> None:
        nonlocal saves
        saves += 1
        real(content, path)
        if saves == nth:
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
