"""The training task of ESC-Net: what a batch is, what its loss is, and that it can be learnt."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from escnet import EscNet, EscNetConfig, build_model, preset
from escnet.train.categories import CategorySampling
from escnet.train.data import TrainingSample
from escnet.train.groups import Rates
from escnet.train.loss import LossWeights
from escnet.train.segmentation import SegmentationTask, _vmap_takes_the_model, normalised
from escnet.train.text import TextEncoding
from escnet.weights import view_at
from escnet_runtime.preprocess import preprocess
from escnet_runtime.vocabulary import assemble, plan_texts
from tests.model.models import randomise

NAMES = ["red ring", "blue star, azure star", "green ball", "calm sea", "red star"]


def small() -> EscNetConfig:
    """A quick ESC-Net on an 8×8 grid, with two blocks."""
    tiny = preset("tiny")
    clip = dataclasses.replace(
        tiny.clip, image_size=64, vision_layers=3, text_layers=1, skip_layers=(0, 1)
    )
    return dataclasses.replace(tiny, name="small", clip=clip, blocks=2)


@pytest.fixture
def net() -> EscNet:
    return randomise(build_model(small(), seed=1)).requires_grad_(False)


class Halves:
    """Two classes side by side; the last column is not labelled."""

    def __getitem__(self, index: int) -> TrainingSample:
        rng = np.random.Generator(np.random.PCG64(index))
        first, second = rng.choice(len(NAMES), 2, replace=False)
        labels = np.full((64, 64), first, np.int64)
        labels[:, 32:] = second
        labels[:, -1] = -1
        image = (40 * labels[:, :, None] + 60 + np.array([0, 30, 60])).clip(0, 255)
        return TrainingSample(image=image.astype(np.uint8), labels=labels)


def task(net: EscNet, **options: Any) -> SegmentationTask:
    settings: dict[str, Any] = {
        "rates": Rates(small=1e-4, large=1e-3, weight_decay=0.0),
        "categories": CategorySampling(per_image=3),
        "weights": "test",
    }
    samples = options.pop("samples", Halves())
    return SegmentationTask(net, samples, NAMES, **{**settings, **options})


def test_a_sample_depends_on_its_number_alone(net: EscNet) -> None:
    first, second = (task(net).samples[7] for _ in range(2))
    for key in ("image", "labels", "categories"):
        assert torch.equal(first[key], second[key])
    other = task(net, seed=1).samples
    assert any(
        not torch.equal(task(net).samples[i]["categories"], other[i]["categories"])
        for i in range(8)
    )


def test_labels_index_the_categories_of_the_image(net: EscNet) -> None:
    for index in range(10):
        found, truth = task(net).samples[index], Halves()[index].labels
        assert len(found["categories"]) == 3
        labelled = truth >= 0
        assert torch.equal(
            found["categories"][found["labels"][torch.from_numpy(labelled)]],
            torch.from_numpy(truth[labelled]),
        )
        assert (found["labels"].numpy()[~labelled] == -1).all()


def test_of_too_many_classes_those_with_the_fewest_pixels_are_not_asked_for(net: EscNet) -> None:
    """Their pixels are not labelled then."""

    class Stripes:
        def __getitem__(self, index: int) -> TrainingSample:
            labels = np.repeat([3, 0, 4, 1, 2], [9, 25, 14, 11, 5])[None].repeat(64, 0)
            return TrainingSample(image=np.zeros((64, 64, 3), np.uint8), labels=labels)

    found = task(net, samples=Stripes()).samples[0]
    assert found["categories"].tolist() == [0, 1, 4]
    labels, counts = found["labels"].unique(return_counts=True)
    assert labels.tolist() == [-1, 0, 1, 2]
    assert counts.tolist() == [64 * columns for columns in (9 + 5, 25, 11, 14)]


def test_an_image_is_normalised_as_the_runtime_does_it(net: EscNet) -> None:
    """Or a model would be trained on other numbers than it is used with."""
    size = net.config.clip.image_size
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    config = dataclasses.replace(net.config, image_mean=(0.1, 0.4, 0.6), image_std=(0.2, 0.3, 0.5))
    got = normalised(config, torch.from_numpy(image)[None])
    want = preprocess(image, config.preprocessing)
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-6, atol=1e-6)


def test_the_loss_is_cross_entropy_over_all_labelled_pixels(net: EscNet) -> None:
    trained = task(net)
    samples = [trained.samples[i] for i in range(2)]
    got = trained.module(trained.collate(samples))
    encoding, total, right, pixels = TextEncoding(net, NAMES), 0.0, 0, 0
    for sample in samples:
        text = encoding.encode(net, sample["categories"])
        logits = net(normalised(net.config, sample["image"][None]), text)
        large = F.interpolate(logits[None], size=(64, 64), mode="bilinear", align_corners=False)
        labels = sample["labels"][None]
        total += F.cross_entropy(large, labels, ignore_index=-1, reduction="sum").item()
        right += int((large.argmax(1) == labels).sum())
        pixels += int((labels >= 0).sum())
    assert pixels == 2 * 64 * 63
    assert got["loss"].item() == pytest.approx(total / pixels, rel=1e-5)
    assert got["accuracy"].item() == pytest.approx(right / pixels, abs=1e-3)


def test_images_at_once_give_what_they_give_one_by_one(
    net: EscNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with equally many categories are one pass; here two have three, and two have five."""
    trained = task(
        net,
        categories=CategorySampling(per_image=3, wide_every=2, wide=5),
        loss=LossWeights(correlation=0.3),
    )
    batch = trained.collate([trained.samples[i] for i in range(4)])

    def gradients() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        for group in trained.groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(True).grad = None
        losses = trained.module(batch)
        losses["loss"].backward()
        found = [p.grad for group in trained.groups for p in group.parameters.values()]
        return losses, [one for one in found if one is not None]

    calls, vmap = [], torch.vmap

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        calls.append(function)
        return vmap(function)

    monkeypatch.setattr(torch, "vmap", counted)
    at_once = gradients()
    assert len(calls) == 2
    monkeypatch.setattr(
        "escnet.train.segmentation._alike", lambda images, _: [[index] for index in images]
    )
    one_by_one = gradients()
    assert len(calls) == 2
    for name, value in one_by_one[0].items():
        # A pixel that is nearly a tie may fall to either side; no loss jumps with it.
        rel, absolute = (None, 1e-3) if name == "accuracy" else (1e-5, None)
        want = pytest.approx(value.item(), rel=rel, abs=absolute)
        assert at_once[0][name].item() == want, name
    assert len(at_once[1]) == len(one_by_one[1]) > 50
    for one, other in zip(at_once[1], one_by_one[1], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)


def test_a_torch_whose_vmap_refuses_the_model_trains_one_by_one(
    net: EscNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.6 to 2.9 do."""
    trained = task(net)
    batch = trained.collate([trained.samples[i] for i in range(2)])
    want = trained.module(batch)["loss"].item()

    def refused(_: Callable[..., Any]) -> Callable[..., Any]:
        raise RuntimeError("NYI: querying is_contiguous inside of vmap")

    monkeypatch.setattr(torch, "vmap", refused)
    monkeypatch.setattr(torch.func, "vmap", refused)
    _vmap_takes_the_model.cache_clear()
    try:
        assert trained.module(batch)["loss"].item() == pytest.approx(want, rel=1e-5)
    finally:
        _vmap_takes_the_model.cache_clear()


class Sizes:
    """Halves in the model's size and in twice of it, in turn."""

    def __getitem__(self, index: int) -> TrainingSample:
        sample, times = Halves()[index], 1 + index % 2
        return TrainingSample(
            image=sample.image.repeat(times, 0).repeat(times, 1),
            labels=sample.labels.repeat(times, 0).repeat(times, 1),
        )


def test_images_of_several_sizes_train_the_same_weights(net: EscNet) -> None:
    trained = task(net, samples=Sizes())
    samples = [trained.samples[i] for i in range(3)]
    names = trained.module.state_dict().keys()
    for group in trained.groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_(True)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        net.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    loss = trained.module(trained.collate(samples))["loss"]
    got = gradients(loss)
    # What a run saves is the model alone.
    assert trained.module.state_dict().keys() == names

    encoding = TextEncoding(net, NAMES)
    total, pixels = [], 0
    for sample in samples:
        size = len(sample["image"])
        text = encoding.encode(net, sample["categories"])
        model = {64: net, 128: view_at(net, 128)}[size]
        logits = model(normalised(net.config, sample["image"][None]), text)
        scaled = F.interpolate(logits[None], (size, size), mode="bilinear", align_corners=False)
        labels = sample["labels"][None]
        total.append(F.cross_entropy(scaled, labels, ignore_index=-1, reduction="sum"))
        pixels += int((labels >= 0).sum())
    assert pixels == (1 + 4 + 1) * 64 * 63
    want = torch.stack(total).sum() / pixels
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    expected = gradients(want)
    assert got.keys() == expected.keys()
    assert len(got) > 50
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=2e-3, atol=1e-5)


def test_in_mixed_precision_a_batch_is_trained_too(net: EscNet) -> None:
    trained = task(net)
    batch = trained.collate([trained.samples[i] for i in range(3)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = trained.module(batch)["loss"]
    assert mixed.item() == pytest.approx(trained.module(batch)["loss"].item(), rel=0.02)


def test_checkpointed_activations_give_the_same_gradients(net: EscNet) -> None:
    gradients = []
    for checkpoint in (False, True):
        trained = task(net, checkpoint_activations=checkpoint)
        parameters = [p for g in trained.groups for p in g.parameters.values()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        loss = trained.module(trained.collate([trained.samples[0]]))["loss"]
        gradients.append(torch.autograd.grad(loss, parameters))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_embeddings_are_those_the_runtime_makes(net: EscNet) -> None:
    encoding = TextEncoding(net, NAMES)
    plan = plan_texts(NAMES, net.config.templates)
    from escnet.tokenizer import build_tokenizer
    from escnet_runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(build_tokenizer(net.config.clip.vocab_size), 77)
    tokens = torch.from_numpy(tokenizer.encode(plan.prompts, cleaned=True))
    want = assemble(plan, net.encode_text(tokens).numpy()).embeddings
    got = encoding.encode(net, torch.arange(len(NAMES)))
    torch.testing.assert_close(got, torch.from_numpy(np.array(want)), rtol=1e-5, atol=1e-6)
    some = encoding.encode(net, torch.tensor([4, 1]))
    torch.testing.assert_close(some, got[[4, 1]], rtol=1e-5, atol=1e-6)


def test_prompts_are_decided_in_float32_under_autocast(net: EscNet) -> None:
    trained = task(net)
    batch = trained.collate([trained.samples[0]])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trained.module(batch)["loss"]
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(trained.module(batch)["loss"].item(), rel=0.05)


def test_a_few_steps_lower_the_loss() -> None:
    net = build_model(small(), seed=0)
    trained = task(net)
    parameters = [p for g in trained.groups for p in g.parameters.values()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    batch = trained.collate([trained.samples[i] for i in range(2)])
    losses = []
    for _ in range(24):
        loss = trained.module(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.8 * losses[0]
