"""Counting operations: by hand for small parts, and what must hold between the two forms."""

import dataclasses

import pytest
import torch
from torch import Tensor

from escnet.presets import PRESETS, preset
from escnet_bench.gflop import GflopRow, count_flops, gflop_rows
from escnet_runtime.errors import InputError


@pytest.fixture(scope="module")
def tiny() -> dict[tuple[int, str], GflopRow]:
    """Rows of the tiny preset by number of categories and form, one chunk each."""
    rows = gflop_rows(preset("tiny"), [2, 3, 4, 12], chunk=12)
    return {(row.categories, row.form): row for row in rows}


def test_a_linear_layer_counts_two_for_each_multiply_add() -> None:
    weight, x = torch.zeros(7, 5), torch.zeros(3, 5)
    assert count_flops(lambda x: torch.relu(x @ weight.T), [x]) == 2 * 3 * 5 * 7


def test_what_depends_on_weights_alone_is_not_counted() -> None:
    first, second, x = torch.zeros(5, 5), torch.zeros(5, 5), torch.zeros(3, 5)
    composed = 2 * 3 * 5 * 5
    assert count_flops(lambda x: x @ (first @ second), [x]) == composed
    assert count_flops(lambda x: (x @ first) @ second, [x]) == 2 * composed


def test_what_goes_through_lists_and_views_is_counted() -> None:
    def function(x: Tensor) -> Tensor:
        joined = torch.cat([torch.zeros(1, 4), x.T.reshape(2, 4)])
        return joined @ torch.zeros(4, 6)

    assert count_flops(function, [torch.zeros(2, 4)]) == 2 * 3 * 4 * 6


def test_correlation_is_what_one_works_out_by_hand(tiny: dict[tuple[int, str], GflopRow]) -> None:
    config = preset("tiny")
    pixels = config.grid**2
    scores = 2 * config.clip.embed_dim * pixels
    embedding = 2 * config.fusion.hidden_dim * pixels  # a 1×1 convolution of one channel
    for form in ("plain", "shipped"):
        counted = tiny[12, form].stages["correlation"]
        assert counted == pytest.approx(12 * (scores + embedding) / 1e9)


def test_fusing_the_categories_is_what_one_works_out_by_hand(
    tiny: dict[tuple[int, str], GflopRow],
) -> None:
    config = preset("tiny")
    width = config.sam.embed_dim
    by_hand = 2 * config.grid**2 * width * (width + config.fusion.hidden_dim)
    assert tiny[12, "shipped"].stages["esc3_fuse"] == pytest.approx(by_hand / 1e9)


def test_sharing_takes_fewer_operations(tiny: dict[tuple[int, str], GflopRow]) -> None:
    plain, shipped = tiny[12, "plain"], tiny[12, "shipped"]
    assert plain.stages.keys() == shipped.stages.keys()
    for name in ("esc0_sam", "esc0_vlf", "decoder"):
        assert shipped.stages[name] < plain.stages[name]
    assert shipped.gflop < plain.gflop
    assert shipped.of_plain == pytest.approx(shipped.gflop / plain.gflop)
    assert plain.of_plain == 1.0
    assert plain.gflop == pytest.approx(sum(plain.stages.values()))


@pytest.mark.parametrize("form", ["plain", "shipped"])
def test_operations_are_linear_in_the_categories(
    tiny: dict[tuple[int, str], GflopRow], form: str
) -> None:
    two, three, four, twelve = (tiny[n, form].gflop for n in (2, 3, 4, 12))
    assert four - three == pytest.approx(three - two)
    assert twelve - two == pytest.approx(10 * (three - two))
    assert three - two > 0


def test_the_image_encoder_does_not_depend_on_the_categories(
    tiny: dict[tuple[int, str], GflopRow],
) -> None:
    found = {row.stages["image_encoder"] for row in tiny.values()}
    assert len(found) == 1


def test_chunks_repeat_what_is_shared_and_nothing_else() -> None:
    whole, halves = (gflop_rows(preset("tiny"), [32], chunk=chunk) for chunk in (32, 12))
    assert halves[0].gflop == whole[0].gflop  # the plain form has no chunks
    assert halves[0].chunk is None
    assert halves[1].chunk == 16  # whole groups
    more = {
        name
        for name, gflop in halves[1].stages.items()
        if gflop > whole[1].stages[name] * (1 + 1e-9)
    }
    assert {"decoder", "esc0_sam", "esc0_vlf"} <= more
    assert not more & {"image_encoder", "correlation", "esc0_fuse"}


def test_large_presets_take_neither_memory_nor_minutes_and_meet_the_target() -> None:
    plain, shipped = gflop_rows(PRESETS["vit-b-16"], [150], chunk=16)
    assert plain.gflop == pytest.approx(1062, rel=0.03)  # a separate implementation's count
    assert shipped.of_plain <= 0.78


def test_steps_are_told() -> None:
    said: list[str] = []
    gflop_rows(preset("tiny"), [1], chunk=1, step=said.append)
    assert said == ["1 categories"]


@pytest.mark.parametrize(("categories", "chunk"), [([0], 1), ([2, -1], 1), ([1], 0)])
def test_numbers_below_one_are_refused(categories: list[int], chunk: int) -> None:
    with pytest.raises(InputError, match="expected at least 1"):
        gflop_rows(preset("tiny"), categories, chunk=chunk)


def test_rows_cannot_be_changed(tiny: dict[tuple[int, str], GflopRow]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny[2, "plain"].gflop = 0.0  # type: ignore[misc]
