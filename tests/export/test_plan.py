"""Which block computes in what, and what travels between blocks of different types."""

import pytest
import torch

from escnet.model import EscNet
from escnet_export.export import example_inputs
from escnet_export.graphs import model_graphs
from escnet_export.plan import PrecisionPlan, encoder_parts, graph_of, part_of, wire_types
from escnet_export.precision import typed_graphs
from escnet_runtime.manifest import Precision

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8


def wires(model: EscNet, plan: PrecisionPlan) -> dict[tuple[str, str], Precision]:
    """Types of ports, those that are not the plan's base alone."""
    found = wire_types(model_graphs(model), plan)
    return {port: kind for port, kind in found.items() if kind is not plan.arithmetic_of(plan.base)}


def test_a_raised_block_alone_takes_and_gives_what_it_did(mini: EscNet) -> None:
    plan = PrecisionPlan(base=FP16).with_raised("esc1_image")
    assert plan.precision("esc1_image") is FP32
    assert plan.precision("esc1_text") is FP16
    assert wires(mini, plan) == {}


def test_between_raised_blocks_nothing_is_rounded(mini: EscNet) -> None:
    plan = PrecisionPlan(base=BF16)
    for block in ("esc0_fuse", "esc0_image", "esc0_text"):
        plan = plan.with_raised(block)
    assert wires(mini, plan) == {
        ("esc0_fuse", "guidance"): FP32,
        ("esc0_image", "guidance"): FP32,
        ("esc0_image", "embedding_out"): FP32,
        ("esc0_text", "embedding"): FP32,
    }


def test_features_have_one_type_for_all_that_read_them(mini: EscNet) -> None:
    plan = PrecisionPlan(base=FP16).with_raised("image_encoder").with_raised("esc0_sam")
    assert wires(mini, plan) == {}
    both = wires(mini, plan.with_raised("esc0_fuse"))
    assert {port for _, port in both} == {"block_features"}
    assert {graph for graph, _ in both} == {"image_encoder", "esc0_sam", "esc0_fuse"}


def test_fp16_and_bf16_meet_in_float32(mini: EscNet) -> None:
    plan = PrecisionPlan(base=FP16, image_encoder=BF16)
    assert {graph for graph, _ in wires(mini, plan)} == {
        *("image_encoder", "esc0_sam", "esc0_fuse", "decoder"),
    }


def test_parts_of_the_image_encoder(mini: EscNet) -> None:
    parts = encoder_parts(mini.config)
    assert parts == (
        "image_encoder.stem",
        *(f"image_encoder.block{index}" for index in range(3)),
        "image_encoder.heads",
    )
    encoder = ("clip.visual.", "block_projection.", "skip0.", "skip1.")
    names = [name for name, _ in mini.named_parameters() if name.startswith(encoder)]
    assert {part_of(name) for name in names} == set(parts)
    assert part_of("clip.visual.transformer.resblocks.2.mlp.c_fc.weight") == parts[3]
    assert graph_of(parts[1]) == "image_encoder"


def test_raising_goes_step_by_step() -> None:
    plan = PrecisionPlan(base=INT8)
    assert plan.arithmetic("decoder") is FP16
    assert plan.precision("correlation") is FP16  # never quantised
    once = plan.with_raised("decoder")
    assert once.precision("decoder") is FP16
    twice = once.with_raised("decoder")
    assert twice.precision("decoder") is FP32
    assert twice.higher("decoder") is None
    assert twice.without("decoder") == plan
    assert PrecisionPlan(base=INT8, rest=FP32).with_raised("decoder").precision("decoder") is FP32


def test_a_whole_graph_replaces_its_parts() -> None:
    plan = PrecisionPlan(base=FP16).with_raised("image_encoder.block1")
    assert plan.precision("image_encoder") is FP16
    assert plan.parts("image_encoder") == {"image_encoder.block1": FP32}
    assert plan.with_raised("image_encoder").raised == {"image_encoder": FP32}


def test_a_part_that_is_higher_than_its_graph_stays_so() -> None:
    """It was raised because it overflows in float16, which the graph is raised to."""
    plan = PrecisionPlan(base=INT8).with_raised("image_encoder.block1", FP32)
    plan = plan.with_raised("image_encoder.block2").with_raised("image_encoder")
    assert plan.precision("image_encoder") is FP16
    assert plan.precision("image_encoder.block1") is FP32
    assert "image_encoder.block2" not in plan.raised
    assert plan.with_raised("image_encoder").raised == {"image_encoder": FP32}


@pytest.mark.parametrize("base", [FP16, BF16])
def test_typed_graphs_take_and_give_what_their_ports_say(mini: EscNet, base: Precision) -> None:
    plan = PrecisionPlan(base=base).with_raised("image_encoder.block1").with_raised("esc0_image")
    for graph in typed_graphs(mini, plan):
        inputs = example_inputs(graph, mini.config, categories=2)
        with torch.inference_mode():
            outputs = graph.module(*inputs)
        for port, tensor in zip(graph.outputs, outputs, strict=True):
            assert port.kind != "graph"
            assert tensor.dtype == port.dtype(torch.float64), f"{graph.name} {port.name}"
