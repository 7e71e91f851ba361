"""Which parameters are trained at which rate, and that each of them gets a gradient."""

import pytest
import torch

from escnet import EscNet
from escnet.train.groups import Rates, parameter_groups
from escnet.train.task import ParameterGroup
from tests.model.models import image, model, text

# What adds the same to a whole map: its gradient is 0 but for rounding.
CONSTANT = ("read_out.bias", "read_norm.bias")


@pytest.fixture(scope="module")
def groups() -> list[ParameterGroup]:
    return parameter_groups(model(), Rates(small=2e-6, large=2e-4, weight_decay=1e-4))


def names(groups: list[ParameterGroup], *, rate: float) -> set[str]:
    return {name for group in groups if group.rate == rate for name in group.parameters}


def test_the_small_rate_is_for_attention_of_clip_and_the_sam_blocks(
    groups: list[ParameterGroup],
) -> None:
    small = names(groups, rate=2e-6)
    assert all((name.startswith("clip.") and ".attn." in name) or ".sam." in name for name in small)
    towers = {name.split(".resblocks")[0] for name in small if name.startswith("clip.")}
    assert towers == {"clip.visual.transformer", "clip.transformer"}
    assert {name.split(".")[1] for name in small if ".sam." in name} == {"0", "1", "2", "3"}


def test_the_large_rate_is_for_everything_else_but_clip(groups: list[ParameterGroup]) -> None:
    large = names(groups, rate=2e-4)
    assert not any(name.startswith("clip.") or ".sam." in name for name in large)
    parts = {name.split(".")[0] for name in large}
    assert parts == {
        *("block_projection", "blocks", "correlation_embedding", "decoder", "skip0", "skip1"),
    }


def test_no_parameter_is_in_two_groups(groups: list[ParameterGroup]) -> None:
    every = [name for group in groups for name in group.parameters]
    assert len(every) == len(set(every))


def test_vectors_do_not_decay(groups: list[ParameterGroup]) -> None:
    for group in groups:
        dimensions = {parameter.ndim for parameter in group.parameters.values()}
        assert (group.weight_decay == 0.0) == (dimensions == {1}), group.name


def test_what_is_trained_gets_a_gradient_and_what_is_not_needs_none(
    groups: list[ParameterGroup],
) -> None:
    """So that nothing only decays, and several processes need not look for unused parameters."""
    net: EscNet = model()
    trained = {name for group in groups for name in group.parameters}
    try:
        net.requires_grad_(True)
        tokens = torch.tensor([[1, 5, 7, net.config.clip.vocab_size - 1]] * 3, dtype=torch.int32)
        tokens[1, 1], tokens[2, 2] = 9, 11
        net(image(net.config), net.encode_text(tokens)).square().mean().backward()
        without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
        assert not without & trained
        rest = {n for n, _ in net.named_parameters() if not n.startswith("clip.")} - trained
        assert {n for n in rest if not n.endswith(CONSTANT)} <= without
    finally:
        net.zero_grad(set_to_none=True)
        net.requires_grad_(False)


def test_gradients_stop_at_the_prompts_decisions() -> None:
    """Points and regions pass none; the probabilities of the mask prompts do."""
    net = model()
    features = net.encode_image(image(net.config)).features.requires_grad_(True)
    scores, _ = net.correlate(features, text(net.config, 3))
    from escnet.ppg import pseudo_prompts

    prompts = pseudo_prompts(scores, net.config.ppg)
    assert not prompts.points.requires_grad
    assert not prompts.regions.requires_grad
    assert prompts.probabilities.requires_grad
