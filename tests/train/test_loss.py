"""The loss on the correlation maps that make the prompts."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from escnet import build_model
from escnet.config import SamPrompts
from escnet.train.data import IGNORED
from escnet.train.loss import LossWeights, cell_shares, correlation_loss
from escnet.train.segmentation import normalised
from escnet.train.text import TextEncoding
from escnet_runtime.errors import InputError
from tests.model.models import randomise
from tests.train.test_segmentation import NAMES, small, task

GRID = 8


def some_labels(seed: int, side: int, count: int) -> torch.Tensor:
    """Of two images, [2, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, count, (2, side, side), generator=generator)


@pytest.mark.parametrize(("side", "count"), [(64, 5), (8, 3), (16, 1)])
def test_shares_are_counted_pixels(side: int, count: int) -> None:
    labels = some_labels(side, side, count)
    got = cell_shares(labels, count, GRID)
    cell = side // GRID
    for category in range(count):
        mask = (labels == category).float()
        torch.testing.assert_close(got[:, category], F.avg_pool2d(mask, cell))
    labelled = F.avg_pool2d((labels != IGNORED).float(), cell)
    torch.testing.assert_close(got.sum(1), labelled)


def test_it_is_the_cross_entropy_of_all_labelled_pixels() -> None:
    scores = 0.1 * torch.randn(2, 5, GRID, GRID, generator=torch.Generator().manual_seed(0))
    labels = some_labels(1, 64, 5)
    large = F.interpolate(scores, scale_factor=8, mode="nearest") / 0.02
    each = zip(large, labels, strict=True)
    want = torch.stack([F.cross_entropy(a[None], b[None], ignore_index=IGNORED) for a, b in each])
    got = correlation_loss(scores, cell_shares(labels, 5, GRID), 0.02)
    torch.testing.assert_close(got, want)


def test_without_labels_there_is_nothing_to_learn() -> None:
    labels = torch.full((1, 64, 64), IGNORED)
    scores = torch.randn(1, 3, GRID, GRID, requires_grad=True)
    loss = correlation_loss(scores, cell_shares(labels, 3, GRID), 0.02)
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_it_is_added_to_the_cross_entropy_of_the_logits() -> None:
    net = randomise(build_model(small(), seed=1)).requires_grad_(False)
    plain, both = task(net), task(net, loss=LossWeights(correlation=0.5))
    batch = plain.collate([plain.samples[0], plain.samples[1]])
    one, other = plain.module(batch), both.module(batch)
    assert "correlation" not in one
    want = one["loss"] + 0.5 * other["correlation"]
    torch.testing.assert_close(other["loss"], want)


def test_it_is_the_mean_over_the_maps_that_enter_blocks() -> None:
    """C and each block's C' but the last one's, which makes no prompts; of all images alike."""
    net = randomise(build_model(dataclasses.replace(small(), blocks=3), seed=1))
    taught = task(net.requires_grad_(False), loss=LossWeights(correlation=1.0))
    samples = [taught.samples[index] for index in range(2)]
    each = []
    for sample in samples:
        text = TextEncoding(net, NAMES).encode(net, sample["categories"])
        scores = net.trace(normalised(net.config, sample["image"][None]), text).scores
        assert len(scores) == 4
        shares = cell_shares(sample["labels"][None], len(text), GRID)
        each += [correlation_loss(one[None], shares, net.config.ppg.temperature) for one in scores]
    entering = [one.item() for index, one in enumerate(each) if index % 4 != 3]
    found = taught.module(taught.collate(samples))["correlation"]
    assert found.item() == pytest.approx(sum(entering) / 6, rel=1e-4)
    assert len({round(one.item(), 3) for one in each}) == 8  # each map counts by itself


@pytest.mark.parametrize("prompts", ["points+masks", "points", "boxes"])
def test_every_map_that_makes_prompts_is_taught(prompts: SamPrompts) -> None:
    config = small()
    config = dataclasses.replace(
        config, blocks=3, sam=dataclasses.replace(config.sam, prompts=prompts)
    )
    net = randomise(build_model(config, seed=1))
    taught = task(net, loss=LossWeights(correlation=1.0))
    trained: dict[str, Any] = {n: p for g in taught.groups for n, p in g.parameters.items()}
    read = {name for name in trained if "read_out" in name}
    assert read == {f"blocks.{i}.text_guidance.read_out.weight" for i in (0, 1)}
    taught.module(taught.collate([taught.samples[0]]))["loss"].backward()
    assert all(one.grad is not None for one in trained.values())
    assert all(trained[name].grad.any() for name in read)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="correlation is -1"):
        LossWeights(correlation=-1.0)
