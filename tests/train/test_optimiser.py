"""AdamW and Muon side by side: what moves what, at which rate, and that it resumes."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW, Muon

from escnet.train.loop import train
from escnet.train.optimiser import optimiser_of, ordered
from escnet.train.task import ParameterGroup
from escnet_runtime.errors import EscNetError
from tests.train.toys import ToyTask, settings, weights


class Mixed(ToyTask):
    """The toy with its first matrix moved by Muon, which is named first."""

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        named = {n: p for n, p in self.module.named_parameters() if n != "frozen"}
        matrix = {"first.weight": named.pop("first.weight")}
        return (
            ParameterGroup(
                name="matrix", parameters=matrix, rate=2e-2, weight_decay=0.1, muon=True
            ),
            ParameterGroup(name="rest", parameters=named, rate=1e-3, weight_decay=0.0),
        )


def step(task: ToyTask, optimisers: list[Any], factor: float = 1.0) -> None:
    samples = [task.samples[i] for i in range(4)]
    for one in optimisers:
        one.zero_grad()
    task.module(task.collate(samples))["loss"].backward()
    for one in optimisers:
        for group in one.param_groups:
            group["lr"] *= factor
        one.step()


def test_it_is_both_optimisers_at_once() -> None:
    together, apart = Mixed(), Mixed()
    one = optimiser_of(together.groups)
    matrix, rest = apart.groups
    two = [
        AdamW(list(rest.parameters.values()), lr=rest.rate, weight_decay=0.0),
        Muon(list(matrix.parameters.values()), lr=matrix.rate, weight_decay=0.1),
    ]
    assert [group["lr"] for group in one.param_groups] == [1e-3, 2e-2]
    assert [group.name for group in ordered(together.groups)] == ["rest", "matrix"]
    for _ in range(3):
        step(together, [one], 0.5)
        step(apart, two, 0.5)
    want = apart.module.state_dict()
    assert all(torch.equal(value, want[n]) for n, value in together.module.state_dict().items())


def test_a_state_goes_on_where_it_was() -> None:
    first, second = Mixed(), Mixed()
    one = optimiser_of(first.groups)
    step(first, [one])
    other = optimiser_of(second.groups)
    second.module.load_state_dict(first.module.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(2):
        step(first, [one], 0.5)
        step(second, [other], 0.5)
    want = first.module.state_dict()
    assert all(torch.equal(value, want[n]) for n, value in second.module.state_dict().items())


@pytest.mark.parametrize("kind", [ToyTask, Mixed])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, kind: Callable[..., ToyTask]
) -> None:
    train(kind(), settings(), tmp_path / "whole")

    def hook(index: int) -> None:
        if index == 25:
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        train(kind(hook=hook), settings(), tmp_path / "parts")
    train(kind(), settings(), tmp_path / "parts", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_state_of_one_optimiser_does_not_fit_two() -> None:
    plain = optimiser_of(ToyTask().groups).state_dict()
    with pytest.raises(KeyError):
        optimiser_of(Mixed().groups).load_state_dict(plain)


def test_vectors_are_refused_by_muon() -> None:
    task = ToyTask()
    bias = dict(task.module.named_parameters())["first.bias"]
    group = ParameterGroup(
        name="bias", parameters={"bias": bias}, rate=1e-3, weight_decay=0.0, muon=True
    )
    with pytest.raises(ValueError, match="2D"):
        optimiser_of([group])


def test_a_torch_without_muon_trains_what_does_not_ask_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch before 2.9."""
    monkeypatch.delattr(torch.optim, "Muon")
    assert isinstance(optimiser_of(ToyTask().groups), AdamW)
    with pytest.raises(EscNetError, match=r"torch 2\.9.*this is torch .*: install"):
        optimiser_of(Mixed().groups)
