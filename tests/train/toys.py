"""A task that trains in milliseconds, here or in processes of its own."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from escnet.train.loop import train
from escnet.train.settings import LoopSettings
from escnet.train.stop import Stopped
from escnet.train.task import ParameterGroup
from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import InputError

__all__ = ["ToyTask", "metrics", "printed", "settings", "start_toy", "start_toys", "weights"]


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
        self,
        *,
        hook: Callable[[int], None] | None = None,
        validation_hook: Callable[[int], None] | None = None,
        score: str | None = "quality",
    ) -> None:
        self.module: nn.Module = _Regression()
        self.samples = _Points(hook)
        self.score = score
        self.validation_hook = validation_hook
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

    def validate(self, check: Callable[[], None], /) -> Mapping[str, float]:
        """Of two pieces; between them the hook is told the number of the validation, from 1."""
        check()
        assert not self.module.training
        assert not torch.is_grad_enabled()
        self.validations += 1
        if self.validation_hook:
            self.validation_hook(self.validations)
        check()
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


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Its lines."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Autograd decides at its first backward pass whether a fork is safe, by the devices that there are;
# after an export it counts one that is none. So the first one is here, before any test.
torch.ones((), requires_grad=True).backward()


def start_toy(folder: Path, *options: str, rank: int = 0, **changes: Any) -> BaseProcess:
    """Train in ``folder`` in a process of its own: a copy of this one, which is there at once.

    Its exit code is that of a command; what it prints goes to :func:`printed`.

    Args:
        folder: of the run.
        options: "resume"; "SIGNAL@SAMPLE", such as "SIGKILL@20", sends a signal to the process that
            reads that sample, itself or a worker; "SIGKILL@worker-SAMPLE" kills it when a worker
            reads that sample and a state is saved; "SIGKILL@save-N" half-way into writing the N-th
            state; "SIGNAL@validation-N" sends it a signal in the middle of the N-th validation.
        rank: for the output.
        changes: of :func:`settings`.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_child, args=(folder, options, rank, changes))
    with warnings.catch_warnings():
        # Python 3.12 warns of locks that other threads may hold; here they wait for work.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def start_toys(
    folder: Path, count: int, options: Sequence[Sequence[str]] = (), **changes: Any
) -> list[BaseProcess]:
    """Several processes that train together, as torchrun starts them.

    Args:
        folder: of the run.
        count: how many.
        options: of each one, as :func:`start_toy` takes them; none by default.
        changes: of :func:`settings`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with pytest.MonkeyPatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, str(value))
            mine = options[rank] if options else ()
            started.append(start_toy(folder, *mine, rank=rank, **changes))
    return started


def printed(folder: Path, rank: int = 0) -> str:
    """What a process of :func:`start_toy` printed."""
    return _output(folder, rank).read_text(encoding="utf-8")


def _output(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}.rank{rank}.txt")


def _child(folder: Path, options: Sequence[str], rank: int, changes: Mapping[str, Any]) -> None:
    # A copy has none of the threads that OpenMP thinks it has, and is not the process whose group
    # accelerate remembers.
    torch.set_num_threads(1)
    PartialState._reset_state()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = _output(folder, rank).open("w", buffering=1, encoding="utf-8")
    hook = validation_hook = None
    for option in options:
        kind, _, when = option.partition("@")
        if when.startswith("save-"):
            _kill_while_saving(int(when.removeprefix("save-")))
        elif when.startswith("worker-"):
            hook = _kill_parent_at(int(when.removeprefix("worker-")), folder / "state.pt")
        elif when.startswith("validation-"):
            number = int(when.removeprefix("validation-"))
            validation_hook = _signal_at(getattr(signal, kind), number)
        elif when:
            hook = _signal_at(getattr(signal, kind), int(when))
    task = ToyTask(hook=hook, validation_hook=validation_hook)
    try:
        train(task, settings(**changes), folder, resume="resume" in options)
    except Stopped as stop:
        print(stop)
        sys.exit(128 + stop.number)
    except InputError as error:
        print("refused:", error)
        sys.exit(2)
    state = {name: value.tolist() for name, value in task.module.state_dict().items()}
    (folder / f"rank{rank}.json").write_text(json.dumps(state))


def _signal_at(number: int, sample: int) -> Callable[[int], None]:
    def hook(index: int) -> None:
        if index == sample:
            os.kill(os.getpid(), number)

    return hook


def _kill_parent_at(sample: int, state: Path) -> Callable[[int], None]:
    parent = os.getpid()

    def hook(index: int) -> None:
        if index == sample:
            while not state.is_file():
                time.sleep(0.01)
            os.kill(parent, signal.SIGKILL)

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
