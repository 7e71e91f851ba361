"""A forward pass in chunks of categories is the whole one."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from escnet import EscNet, build_model
from escnet.chunks import CHUNK, logits_in_chunks
from escnet.clip import unit_norm
from escnet_export.reference import TorchBackend
from escnet_runtime.groups import GROUP
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.ppg import PpgConstants
from tests.model.models import randomise
from tests.train.small import small_config


@pytest.fixture(scope="module")
def model() -> EscNet:
    return randomise(build_model(small_config(), seed=1)).eval().requires_grad_(False)


def inputs(model: EscNet, categories: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(categories)
    image = torch.randn(1, 3, 64, 64, generator=generator)
    text = torch.randn(categories, model.config.clip.embed_dim, generator=generator)
    return image, unit_norm(text)


@pytest.mark.parametrize("categories", [1, 2, 16, 17, 50])
def test_it_is_the_whole_forward_pass(model: EscNet, categories: int) -> None:
    image, text = inputs(model, categories)
    found = logits_in_chunks(model, image, text)
    torch.testing.assert_close(found, model.forward(image, text), rtol=1e-4, atol=1e-4)


def test_it_is_so_with_a_models_own_constants_of_prompts() -> None:
    constants = PpgConstants(temperature=0.3, alpha=0.7, iterations=1)
    config = dataclasses.replace(small_config(), ppg=constants)
    other = randomise(build_model(config, seed=1)).eval().requires_grad_(False)
    usual = randomise(build_model(small_config(), seed=1)).eval().requires_grad_(False)
    image, text = inputs(other, 5)
    found = logits_in_chunks(other, image, text)
    torch.testing.assert_close(found, other.forward(image, text), rtol=1e-4, atol=1e-4)
    assert (found - logits_in_chunks(usual, image, text)).abs().max() > 1e-3


def test_it_is_what_the_runtime_computes(model: EscNet) -> None:
    image, text = inputs(model, 33)
    config = model.config
    pipeline = Pipeline(TorchBackend(model), blocks=config.blocks, ppg=config.ppg, group=GROUP)
    encoded = pipeline.encode_image(image.numpy())
    chunks = [one for _, one in pipeline.logits(encoded, text.numpy(), chunk=CHUNK)]
    expected = torch.cat([torch.from_numpy(one) for one in chunks])
    torch.testing.assert_close(logits_in_chunks(model, image, text), expected)


def test_the_chunk_does_not_change_the_result(model: EscNet) -> None:
    image, text = inputs(model, 50)
    narrow, wide = (logits_in_chunks(model, image, text, chunk=chunk) for chunk in (1, 32))
    torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-5)


def test_no_module_sees_more_than_a_chunk(model: EscNet) -> None:
    """What makes memory that of a chunk."""
    rows: list[int] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        rows.append(inputs[0].shape[0])

    parts = [model.decoder, *(block.text_guidance for block in model.esc_blocks)]
    hooks = [part.register_forward_pre_hook(note) for part in parts]
    try:
        logits_in_chunks(model, *inputs(model, 70))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(rows) == 5 * (1 + model.config.blocks)
    assert max(rows) <= CHUNK
