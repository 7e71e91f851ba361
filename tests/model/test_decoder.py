"""The decoder: the composed convolutions equal the ones they stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from escnet.decoder import (
    SkipProjection,
    UpStage,
    _group_norm,
    _interleaved,
    _one_channel,
    _pixel_shuffle,
)
from tests.model.models import model, randomise, relative_l2


def make_stage(width: int, skip: int, channels: int) -> UpStage:
    torch.manual_seed(0)
    stage = UpStage(
        up=nn.ConvTranspose2d(width, width - skip, 2, stride=2),
        first=nn.Conv2d(width, channels, 3, padding=1),
        norm1=nn.GroupNorm(2, channels),
        second=nn.Conv2d(channels, channels, 3, padding=1),
        norm2=nn.GroupNorm(2, channels),
    )
    return randomise(stage).requires_grad_(False)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 5)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stage_equals_its_plain_form_up_to_the_border(size: tuple[int, int], count: int) -> None:
    stage = make_stage(12, 4, 8)
    height, width = size
    x, skip = torch.randn(count, 12, height, width), torch.randn(1, 4, 2 * height, 2 * width)
    got, expected = stage(x, skip), stage.forward_plain(x, skip)
    assert got.shape == (count, 8, 2 * height, 2 * width)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert relative_l2(got, expected) <= 1e-5


def test_the_decoder_step_by_step() -> None:
    """What both forms of a stage share: norm, then ReLU, twice; then the head's one channel."""
    net = model()
    config, grid = net.config, net.config.grid
    torch.manual_seed(0)
    embedding = torch.randn(2, grid, grid, config.fusion.hidden_dim)
    skips = [
        torch.randn(1, channels, times * grid, times * grid)
        for channels, times in zip(config.decoder.skip_channels, (2, 4), strict=True)
    ]
    x, decoder = embedding.permute(0, 3, 1, 2), net.decoder
    for stage, skip in zip((decoder.first, decoder.second), skips, strict=True):
        raised = F.conv_transpose2d(x, stage.up.weight, stage.up.bias, stride=2)
        x = torch.cat([raised, skip.expand(2, -1, -1, -1)], dim=1)
        for convolution, norm in ((stage.first, stage.norm1), (stage.second, stage.norm2)):
            x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
            x = F.relu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps))
    head = decoder.head
    expected = F.conv2d(x, head.weight, head.bias, padding=head.padding)[:, 0]
    assert head.padding == (head.kernel_size[0] // 2, head.kernel_size[1] // 2)
    assert relative_l2(decoder(embedding, *skips), expected) <= 1e-5


@pytest.mark.parametrize("factor", [2, 4])
def test_a_pixel_shuffle_in_bfloat16_is_torchs(factor: int) -> None:
    """It is written out there, for a library that has none in that type."""
    maps = torch.randn(3, 5 * factor**2, 2, 7).to(torch.bfloat16)
    expected = F.pixel_shuffle(maps, factor)
    torch.testing.assert_close(_pixel_shuffle(maps, factor), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (2, 7)])
def test_phases_are_interleaved_without_their_border(size: tuple[int, int]) -> None:
    """[row phase, column phase, channel] in front of a grid that is one row and column larger."""
    height, width = size
    phases = torch.randn(3, 2, 2, 5, height + 1, width + 1)
    fine = torch.empty(3, 5, 2 * height + 2, 2 * width + 2)
    for row in range(2):
        for column in range(2):
            fine[:, :, row::2, column::2] = phases[:, row, column]
    got = _interleaved(phases.flatten(1, 3))
    torch.testing.assert_close(got, fine[:, :, 1:-1, 1:-1], rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 5)])
def test_the_head_in_a_graph_is_its_convolution(
    size: tuple[int, int], kernel: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    padding = kernel[0] // 2, kernel[1] // 2
    head = randomise(nn.Conv2d(4, 1, kernel, padding=padding)).requires_grad_(False)
    x = torch.randn(3, 4, *size)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    torch.testing.assert_close(_one_channel(head, x), head(x)[:, 0], rtol=1e-5, atol=1e-5)


def test_a_head_of_half_precision_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head = randomise(nn.Conv2d(4, 1, 3, padding=1)).requires_grad_(False).half()
    x = torch.randn(2, 4, 5, 5).half()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    torch.testing.assert_close(_one_channel(head, x), head(x)[:, 0], rtol=0, atol=0)


def test_weights_are_composed_in_float32_under_autocast_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, sam = make_stage(6, 2, 4), model().esc_blocks[0].sam
    seen: list[torch.Tensor] = []
    convolve = F.conv2d

    def watched(x: torch.Tensor, weight: torch.Tensor, *, padding: int) -> torch.Tensor:
        seen.append(weight)
        return convolve(x, weight, padding=padding)

    def weights() -> list[torch.Tensor]:
        seen.clear()
        stage._own(torch.randn(2, 6, 3, 3))
        return [*seen, *sam._first_mask_product()]

    monkeypatch.setattr(F, "conv2d", watched)
    expected = weights()
    with torch.autocast("cpu", torch.bfloat16):
        got = weights()
    assert len(got) == len(expected) == 3
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_composed_weights_follow_both_convolutions() -> None:
    """No weight is left out of the composition: a change of any moves both forms alike."""
    stage = make_stage(6, 2, 4)
    x, skip = torch.randn(2, 6, 3, 3), torch.randn(1, 2, 6, 6)
    before = stage(x, skip)
    for convolution in (stage.up, stage.first):
        convolution.weight *= 1.0 + torch.rand_like(convolution.weight)
        assert relative_l2(stage(x, skip), before) > 1e-3
        assert relative_l2(stage(x, skip), stage.forward_plain(x, skip)) <= 1e-5


@pytest.mark.parametrize("name", ["tiny", "narrow-large"])
@pytest.mark.parametrize("count", [1, 2, 19])
def test_the_decoder_equals_its_plain_form(name: str, count: int) -> None:
    net = model(name)
    config, grid = net.config, net.config.grid
    skip0, skip1 = config.decoder.skip_channels
    torch.manual_seed(count)
    inputs = (
        torch.randn(count, grid, grid, config.fusion.hidden_dim),
        torch.randn(1, skip0, 2 * grid, 2 * grid),
        torch.randn(1, skip1, 4 * grid, 4 * grid),
    )
    got = net.decoder(*inputs)
    assert got.shape == (count, config.logits, config.logits)
    assert got.dtype == torch.float32
    assert relative_l2(got, net.decoder(*inputs, plain=True)) <= 1e-5


@pytest.mark.parametrize(
    "maps",
    [
        torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0)),
        torch.randn(1, 8, 5, 4, generator=torch.Generator().manual_seed(1)) * 3 + 100,
        torch.full((2, 8, 5, 4), 777.7),
        torch.zeros(1, 8, 1, 2),
    ],
    ids=["normal", "far from 0", "constant", "zeros"],
)
def test_the_norm_in_a_graph_is_group_norm(
    maps: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = randomise(nn.GroupNorm(2, 8)).requires_grad_(False)
    expected = copy.deepcopy(norm).double()(maps.double()).float()
    # Float32's rounding of a mean and of a mean square, in units of the deviation and variance.
    variance = float(maps.var()) + norm.eps
    rounding = float(maps.abs().max()) * 1.2e-7 / variance**0.5
    relative = float(maps.mean()) ** 2 * 1.2e-7 / variance
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True, raising=False)
    got = _group_norm(norm, maps)
    tolerance = 1e-5 + 2 * rounding + 4 * min(relative, 1.0) * float(expected.std())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=tolerance)
    assert _group_norm(norm, maps.half()).dtype == torch.float16


def test_a_skip_projection_keeps_rows_and_columns_apart() -> None:
    """Tokens come row by row; each raises only the pixels at its own place, and neighbours."""
    torch.manual_seed(0)
    up, project = nn.ConvTranspose2d(6, 5, 2, stride=2), nn.Conv2d(5, 3, 3, padding=1)
    skip = SkipProjection(up, project, (2, 4)).requires_grad_(False)
    tokens = torch.randn(1, 8, 6)
    changed = tokens.clone()
    changed[0, 3] += 10.0  # row 0, column 3
    moved = (skip(changed) - skip(tokens)).abs().amax(dim=(0, 1))
    assert moved.shape == (4, 8)
    assert moved[:2, 6:].max() > 0.1
    assert moved[:, :5].max() == 0.0
    assert moved[3].max() == 0.0


@pytest.mark.parametrize("factor", [2, 4])
def test_a_skip_projection_equals_its_transposed_convolution(factor: int) -> None:
    torch.manual_seed(0)
    up, project = nn.ConvTranspose2d(6, 5, factor, stride=factor), nn.Conv2d(5, 3, 3, padding=1)
    skip = randomise(SkipProjection(up, project, (2, 3))).requires_grad_(False)
    tokens = torch.randn(2, 6, 6)
    got, expected = skip(tokens), skip.forward_plain(tokens)
    assert got.shape == (2, 3, 2 * factor, 3 * factor)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_skip_projection_whose_patches_touch_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the stride"):
        SkipProjection(nn.ConvTranspose2d(6, 5, 3, stride=2), nn.Conv2d(5, 3, 3), (2, 3))
