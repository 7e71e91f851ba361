"""The accuracy gate on models made to break: it names what breaks, that alone, and mends it."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from escnet.model import EscNet
from escnet_export import Budget, ExportReport, ParityError, raised
from escnet_export.decision import Decision
from escnet_export.gate import AccuracyGate
from escnet_export.kept import Kept
from escnet_export.plan import PrecisionPlan, graph_of
from escnet_export.ranges import Trap
from escnet_export.report import ParityReport, StageError
from escnet_export.workshop import Built
from escnet_runtime.bundle import Bundle
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.strict_json import parse_object
from escnet_runtime.verify import verify_bundle
from tests.export.broken import BREAKS, broken
from tests.export.conftest import GraphFiles, exported, make_quick
from tests.model.models import image, text


@pytest.fixture(params=list(BREAKS))
def block(request: pytest.FixtureRequest) -> str:
    """The block that breaks."""
    name: str = request.param
    return name


@pytest.fixture
def model(
    block: str,
    mini: EscNet,
    graph_files: GraphFiles,
    picture: ImageArray,
    monkeypatch: pytest.MonkeyPatch,
) -> EscNet:
    """A model whose ``block`` overflows in float16; its other graphs are exported already."""
    make_quick(monkeypatch, graph_files, picture, changed=[graph_of(block)])
    return broken(mini, block)


def fp16(model: EscNet, picture: ImageArray, output: Path, **options: object) -> ExportReport:
    """An export at fp16."""
    return exported(model, picture, output, precision=Precision.FP16, **options)


def test_a_broken_model_computes_the_same_in_float32(
    block: str, model: EscNet, mini: EscNet
) -> None:
    pixels, names = image(mini.config), text(mini.config, 3)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels, names), mini(pixels, names), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_block_that_overflows_is_raised_and_no_other(
    block: str, model: EscNet, picture: ImageArray, tmp_path: Path
) -> None:
    report = fp16(model, picture, tmp_path / "bundle")
    assert [kept.block for kept in report.parity.kept_higher] == [block]
    kept = report.parity.kept_higher[0]
    assert (kept.precision, kept.instead_of) == (Precision.FP32, Precision.FP16)
    assert "exceeds float16's 65,504" in kept.why
    assert kept.bytes > 0
    assert kept.milliseconds is not None
    assert report.parity.passed
    assert report.parity.kept_in_fp32 == [block]
    overflows = [trap for trap in report.parity.traps if trap.overflows]
    assert {trap.block for trap in overflows} == {block}
    assert verify_bundle(report.bundle).passed
    stages = Bundle.open(report.bundle, check="hashes").manifest.stages
    raised = {name for name, stage in stages.items() if stage.precision is Precision.FP32}
    assert raised == ({block} if block in stages else set())
    data = parse_object((report.bundle / "parity.json").read_text(), "parity.json")
    assert [entry["block"] for entry in data["kept_higher"]] == [block]
    page = (report.bundle / "parity.html").read_text()
    assert "Kept higher" in page
    assert block in page


@pytest.mark.slow
def test_without_raising_nothing_is_written(
    block: str, model: EscNet, picture: ImageArray, tmp_path: Path
) -> None:
    """The budget is missed on this machine as well: its CPU rounds to float16 between operators."""
    with pytest.raises(ParityError, match=r"nothing was written.*without --no-raise"):
        fp16(model, picture, tmp_path / "bundle", raise_blocks=False)
    assert list(tmp_path.iterdir()) == []


class _Scripted(AccuracyGate):
    """A gate with figures that are made up: the image encoder is near enough from fp16 on, where
    one of its blocks overflows that int8 had kept in range."""

    def __init__(self) -> None:
        pass

    def _measure(self, plan: PrecisionPlan) -> Decision:
        report = ParityReport(
            gate="stages",
            passed=False,
            images=1,
            categories=2,
            pixels=1,
            pixel_agreement=1.0,
            near_ties=0.0,
            agreement_without_ties=1.0,
            prompt_flips=0,
            prompts=1,
            blocks=[],
            stages={"image_encoder": StageError(0.0 if plan.raised else 1.0)},
            budget=Budget.default(Precision.INT8),
        )
        report.judge()
        self._plan = plan
        return Decision(plan=plan, built={}, report=report)

    def _traps(self, built: Mapping[str, Built]) -> list[Trap]:
        block = "image_encoder.block1"
        largest = {Precision.INT8: 6e4, Precision.FP16: 1e6}.get(self._plan.precision(block))
        if largest is None:
            return []
        return [Trap(block=block, tensor="t", op="MatMul", near="w", largest=largest)]

    def _raise(
        self, decision: Decision, reasons: dict[str, str], damages: dict[str, float | None]
    ) -> Decision:
        return self._measure(decision.plan.with_raised("image_encoder"))

    def _kept(
        self,
        start: Decision,
        decision: Decision,
        reasons: Mapping[str, str],
        damages: Mapping[str, float | None],
    ) -> list[Kept]:
        return [
            Kept(
                block=block,
                precision=precision,
                instead_of=Precision.INT8,
                why="",
                damage=None,
                bytes=0,
                milliseconds=None,
                timed=block,
            )
            for block, precision in decision.plan.raised.items()
        ]


def test_what_overflows_only_where_it_was_raised_to_float16_is_found() -> None:
    decision = _Scripted().fit(PrecisionPlan(base=Precision.INT8))
    assert decision.plan.raised == {
        "image_encoder": Precision.FP16,
        "image_encoder.block1": Precision.FP32,
    }
    assert [trap.largest for trap in decision.report.traps] == [6e4, 1e6]
    assert decision.report.passed


def test_a_budget_of_nothing_is_no_infinite_multiple() -> None:
    gate = AccuracyGate.__new__(AccuracyGate)
    report = SimpleNamespace(stages={"esc0_sam": StageError(7e-4, 1.0)})
    plan = PrecisionPlan(base=Precision.FP16)
    decision = cast(Decision, SimpleNamespace(plan=plan, report=report))
    why = gate._why(decision, "esc0_sam", np.inf)
    assert why == (
        "alone at fp16, esc0_sam has a loss of which the budget allows none (relative L2 7.0e-04)"
    )


@pytest.mark.slow
def test_what_costs_most_is_raised_until_the_budget_holds(
    mini: EscNet,
    graph_files: GraphFiles,
    picture: ImageArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A budget between the worst stage and the next one: the worst is raised, nothing else."""
    make_quick(monkeypatch, graph_files, picture)
    first = fp16(mini, picture, tmp_path / "first")
    assert first.parity.passed
    assert first.parity.kept_higher == []
    errors = first.parity.stages
    order = sorted(errors, key=lambda name: -errors[name].relative_l2)
    assert order[0] != "image_encoder"  # it has parts, which another test is about
    limit = (errors[order[0]].relative_l2 + errors[order[1]].relative_l2) / 2
    budget = Budget(pixel_agreement=0.0, stage_l2=limit)
    report = fp16(mini, picture, tmp_path / "bundle", budget=budget)
    assert [kept.block for kept in report.parity.kept_higher] == order[:1]
    assert "times the budget" in report.parity.kept_higher[0].why
    assert report.parity.passed
    assert verify_bundle(report.bundle).passed


@pytest.mark.slow
@pytest.mark.parametrize("block", ["image_encoder.block1"], indirect=True)
def test_of_the_image_encoder_only_the_broken_block_has_float32_weights(
    block: str, model: EscNet, picture: ImageArray, tmp_path: Path
) -> None:
    report = fp16(model, picture, tmp_path / "bundle")
    graph = onnx.load(str(report.bundle / "graphs" / "image_encoder.onnx")).graph
    wide = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and "resblocks" in tensor.name
    }
    assert wide
    assert all("resblocks.1." in name for name in wide)
    weights = sum(
        tensor.numel() for tensor in model.clip.visual.transformer.resblocks[1].parameters()
    )
    assert report.parity.kept_higher[0].bytes == 2 * weights
    stored = sum(
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.dims
    )
    assert stored == pytest.approx(weights, rel=0.05)


def test_what_a_raised_block_costs_is_its_time_less_that_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The medians of turns; the first run of each, which loads its file, is none of them."""
    clock = [0.0]
    took = {"before": [50.0, *[2.0] * 6, 90.0], "after": [70.0, *[5.0] * 6, 1.0]}
    closed: list[str] = []

    class Timed:
        def __init__(self, which: str) -> None:
            self.which, self.left = which, iter(took[which])

        def run(self, graph: str, feeds: object) -> None:
            clock[0] += next(self.left) / 1e3

        def close(self) -> None:
            closed.append(self.which)

    monkeypatch.setattr(raised, "open_backend", lambda built: Timed(*built.values()))
    monkeypatch.setattr(raised, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Named(str):
        graph = SimpleNamespace(name="esc0_sam")

    files = cast(Built, Named("before")), cast(Built, Named("after"))
    slower = raised._slower(*files, [{}, {}])
    assert slower == pytest.approx(3.0)
    assert sorted(closed) == ["after", "before"]


class _Priced(_Scripted):
    """A gate whose blocks cost so many budgets each, and nothing once they are raised."""

    def __init__(
        self, costs: Mapping[str, float], gains: Mapping[str, float] | None = None
    ) -> None:
        self.costs, self.gains = costs, gains or costs
        self.measured: list[tuple[str, ...]] = []

    def _measure(self, plan: PrecisionPlan) -> Decision:
        self.measured.append(tuple(plan.raised))
        lost = sum(self.costs.values()) - sum(self.gains[block] for block in plan.raised)
        report = SimpleNamespace(
            passed=lost <= 1,
            damage=lambda: lost,
            stages={block: StageError(1e-3 * cost, 1.0) for block, cost in self.costs.items()},
        )
        built = dict.fromkeys(self.costs)
        return cast(Decision, SimpleNamespace(plan=plan, built=built, report=report))

    @property
    def _only_stages(self) -> bool:
        return False

    def _damage(self, decision: Decision, name: str) -> float:
        return self.costs[name]

    def raised(self) -> tuple[str, ...]:
        """What is raised in the end, and reasons are given for."""
        reasons, damages = dict[str, str](), dict[str, float | None]()
        start = self._measure(PrecisionPlan(base=Precision.FP16))
        decision = AccuracyGate._raise(self, start, reasons, damages)
        assert reasons.keys() == damages.keys() == decision.plan.raised.keys()
        return tuple(decision.plan.raised)


def test_blocks_are_raised_by_what_they_cost_until_the_budget_holds() -> None:
    costs = {"esc0_sam": 0.4, "esc0_fuse": 3.0, "decoder": 0.3, "esc1_sam": 2.0}
    gate = _Priced(costs)
    assert gate.raised() == ("esc0_fuse", "esc1_sam")
    assert gate.measured[:3] == [(), ("esc0_fuse",), ("esc0_fuse", "esc1_sam")]


def test_a_block_that_gains_nothing_is_left_as_it_was() -> None:
    costs = {"esc0_sam": 1.5, "esc0_fuse": 3.0, "decoder": 0.3}
    gate = _Priced(costs, gains={**costs, "esc0_fuse": 0.0, "esc0_sam": 4.0})
    assert gate.raised() == ("esc0_sam",)


def test_where_no_raising_helps_enough_what_gains_nothing_is_not_raised_either() -> None:
    costs = {"esc0_sam": 1.5, "esc0_fuse": 3.0}
    assert _Priced(costs, gains={"esc0_fuse": 0.0, "esc0_sam": 1.0}).raised() == ("esc0_sam",)


def test_a_block_that_the_budget_holds_without_is_lowered_again() -> None:
    """What was raised first cost most alone, and turns out to have been another block's fault."""
    costs = {"esc0_sam": 2.0, "esc0_fuse": 3.0}
    gate = _Priced(costs, gains={"esc0_fuse": 0.5, "esc0_sam": 4.5})
    assert gate.raised() == ("esc0_sam",)
