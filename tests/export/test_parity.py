"""What the parity figures say, on outputs that are made up and so known."""

import copy
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch

from escnet.build import build_model
from escnet.model import EscNet
from escnet.presets import preset
from escnet_export.description import constants_of
from escnet_export.kept import Kept
from escnet_export.parity import Outcome, Sample, label_map, measure_parity, reference_sample
from escnet_export.ranges import Trap
from escnet_export.reference import TorchBackend
from escnet_export.report import Budget, ParityReport, StageError
from escnet_runtime.backends.base import Array, Tensor
from escnet_runtime.groups import GROUP
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.ppg import PpgConstants
from escnet_runtime.preprocess import Preprocessing, preprocess
from escnet_runtime.sketch import relative_l2
from tests.model.models import image, randomise, text

#: Changes the outputs of a graph, given by its name.
Change = Callable[[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
CATEGORIES = 6
STRICT = Budget(pixel_agreement=0.999, stage_l2=1e-4)


class ChangedBackend(TorchBackend):
    """The model in torch, with something done to its outputs."""

    def __init__(self, model: EscNet, change: Change) -> None:
        super().__init__(model)
        self._change = change

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """Outputs of the graph after the change."""
        return self._change(graph, super().run(graph, inputs))


@pytest.fixture(scope="module")
def spec(mini: EscNet) -> Preprocessing:
    """Preprocessing of the model."""
    config = mini.config
    return Preprocessing(size=config.clip.image_size, mean=config.image_mean, std=config.image_std)


@pytest.fixture(scope="module")
def sample(mini: EscNet, picture: ImageArray, spec: Preprocessing) -> Sample:
    """A picture through float32 torch."""
    return reference_sample(mini, picture, text(mini.config, CATEGORIES).numpy(), spec)


def measured(
    model: EscNet, sample: Sample, spec: Preprocessing, change: Change, *, trained: bool = False
) -> ParityReport:
    """The report on a changed model."""
    backend = ChangedBackend(model, change)
    report, outcomes = measure_parity(
        model,
        backend,
        [sample],
        precision=Precision.FP32,
        spec=spec,
        trained=trained,
        budget=STRICT,
    )
    assert len(outcomes) == report.images == 1
    assert report.categories == CATEGORIES
    return report


def larger(name: str, output: str, factor: float) -> Change:
    """Multiply one output of one graph."""

    def change(graph: str, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**out, output: out[output] * factor} if graph == name else out

    return change


def unchanged(_: str, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave everything as it is."""
    return out


@pytest.mark.parametrize("chunk", [1, 16, 19])
def test_the_pipeline_over_torch_gives_what_the_model_gives(chunk: int) -> None:
    model = randomise(build_model(preset("tiny"), seed=1)).requires_grad_(False)
    pixels, embeddings = image(model.config), text(model.config, 19)
    with torch.inference_mode():
        want = model(pixels, embeddings).numpy()
    pipeline = Pipeline(
        TorchBackend(model), blocks=model.config.blocks, ppg=model.config.ppg, group=GROUP
    )
    parts = list(
        pipeline.logits(pipeline.encode_image(pixels.numpy()), embeddings.numpy(), chunk=chunk)
    )
    assert [where.stop - where.start for where, _ in parts] == [len(part) for _, part in parts]
    assert [len(part) for _, part in parts] == ([19] if chunk == 19 else [16, 3])
    assert relative_l2(np.concatenate([part for _, part in parts]), want) <= 1e-5


def test_the_reference_keeps_what_each_graph_was_given(mini: EscNet, sample: Sample) -> None:
    """Refining the scores in place later must not change what was recorded."""
    assert [call.graph for call in sample.calls][:3] == ["image_encoder", "correlation", "esc0_sam"]
    backend = TorchBackend(mini)
    for call in sample.calls:
        again = backend.run(call.graph, call.inputs)
        for name, tensor in again.items():
            assert relative_l2(backend.to_host(tensor), call.outputs[name]) < 1e-6


def test_prompts_are_those_of_the_models_own_constants(
    mini: EscNet, picture: ImageArray, spec: Preprocessing
) -> None:
    """In the reference, and in the description that a bundle carries."""
    constants = PpgConstants(temperature=0.3, alpha=0.7, iterations=1)
    other = copy.copy(mini)
    other.config = dataclasses.replace(mini.config, ppg=constants)
    words = text(mini.config, CATEGORIES)
    found = reference_sample(other, picture, words.numpy(), spec).outcome.prompts
    with torch.inference_mode():
        expected = other.trace(torch.from_numpy(preprocess(picture, spec)), words).prompts
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.regions >= 0, want.regions.numpy() >= 0)
    usual = reference_sample(mini, picture, words.numpy(), spec).outcome.prompts
    assert (found[0].regions != usual[0].regions).any()
    assert constants_of(other.config).ppg == constants
    assert constants_of(other.config).preprocessing == mini.config.preprocessing


def test_nothing_lost_means_nothing_reported(
    mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    report = measured(mini, sample, spec, unchanged)
    assert report.passed
    assert report.prompt_flips == 0
    assert report.prompts == mini.config.blocks * CATEGORIES * mini.config.ppg.regions
    assert report.pixel_agreement == report.agreement_without_ties == 1
    assert report.pixels == spec.size**2
    # Not 0: where an array lies in memory decides how torch adds up.
    assert all(error.relative_l2 < 1e-6 for error in report.stages.values())
    assert all(error.cosine == pytest.approx(1) for error in report.stages.values())


@pytest.mark.parametrize("trained", [False, True])
def test_untrained_weights_are_judged_by_stages_trained_ones_by_pixels(
    trained: bool, mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    """Logits that are all larger by a hundredth give the same labels and a bad stage."""
    report = measured(mini, sample, spec, larger("decoder", "logits", 1.01), trained=trained)
    assert report.stages["decoder"].relative_l2 == pytest.approx(0.01, rel=1e-3)
    assert report.stages["decoder"].cosine == pytest.approx(1)
    assert report.pixel_agreement == 1
    assert report.gate == ("pixels" if trained else "stages")
    assert report.passed is trained
    assert ("pixel agreement 100" if trained else "1.0e-02 (decoder)") in report.reason()


@pytest.mark.parametrize("trained", [False, True])
def test_a_bound_that_is_asked_for_holds_beside_the_gate(
    trained: bool, mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    """Wrong pixels fail untrained weights then, and a bad stage trained ones."""
    factor = 1.01 if trained else -1.0
    report = measured(mini, sample, spec, larger("decoder", "logits", factor), trained=trained)
    loose = STRICT if trained else dataclasses.replace(STRICT, stage_l2=10.0)
    report.budget = loose
    report.judge()
    assert report.passed
    before = report.damage()
    report.budget = dataclasses.replace(loose, asked=("stages",) if trained else ("pixels",))
    report.judge()
    assert not report.passed
    assert len(report.missed()) == 1
    assert ("1.0e-02 (decoder)" if trained else "pixel agreement") in report.reason()
    assert "weights are untrained" not in report.reason()
    assert report.damage() > before + 1


def test_flipped_labels_fail_trained_weights(
    mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    report = measured(mini, sample, spec, larger("decoder", "logits", -1.0), trained=True)
    assert report.gate == "pixels"
    assert report.pixel_agreement < 0.5
    assert not report.passed


def test_a_stage_is_fed_what_torch_fed_it(
    mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    """An error of an early stage does not show in the figures of later ones."""
    report = measured(mini, sample, spec, larger("esc0_fuse", "guidance", 1.5))
    bad = [name for name, error in report.stages.items() if error.relative_l2 > 1e-6]
    assert bad == ["esc0_fuse"]


def test_flips_are_counted_by_block(mini: EscNet, sample: Sample, spec: Preprocessing) -> None:
    """Scores mirrored after block 0: the prompts of block 1 are others, those of block 0 not."""

    def mirrored(graph: str, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if graph != "esc0_text":
            return out
        first = out["scores_out"].clone()
        first[0] = first[0].flip(-1)  # of the first category alone
        return {**out, "scores_out": first}

    report = measured(mini, sample, spec, mirrored)
    regions = mini.config.ppg.regions
    total = CATEGORIES * regions
    assert report.blocks[0] == {"flips": 0, "prompts": total}
    assert report.blocks[1]["prompts"] == total
    assert 0 < report.blocks[1]["flips"] <= regions
    assert report.prompt_flips == report.blocks[1]["flips"]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_stage_that_is_not_finite_fails_either_gate(
    trained: bool, value: float, mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    """Also where the labels agree all the same: the graph runs well but for what torch fed it."""
    runs, wrong = 0, larger("esc1_fuse", "guidance", value)

    def once(graph: str, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal runs
        runs += graph == "esc1_fuse"
        return wrong(graph, out) if runs == 1 else out

    report = measured(mini, sample, spec, once, trained=trained)
    assert report.stages["esc1_fuse"].relative_l2 == np.inf
    assert report.pixel_agreement == 1
    assert not report.passed
    assert "'esc1_fuse' gives numbers that are not finite" in report.reason()


def test_near_ties_are_counted_apart(mini: EscNet, sample: Sample, spec: Preprocessing) -> None:
    """The lower half of the image is a tie of two categories, and all of it flips."""
    cells = mini.config.logits
    want = np.zeros((CATEGORIES, cells, cells), np.float32)
    want[0, : cells // 2] = 10
    want[1, cells // 2 :] = 1e-4
    got = want.copy()
    got[1, cells // 2 :] *= -1
    crafted = dataclasses.replace(sample, outcome=Outcome(sample.outcome.prompts, want))

    def swapped(graph: str, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": torch.from_numpy(got)} if graph == "decoder" else out

    report = measured(mini, crafted, spec, swapped, trained=True)
    assert report.near_ties == pytest.approx(0.5)
    assert report.agreement_without_ties == 1
    assert 0.5 <= report.pixel_agreement < 0.55
    assert not report.passed  # trained weights are judged by all pixels


def test_figures_of_a_stage_keep_the_worst() -> None:
    error, want = StageError(), np.array([3.0, 4.0])
    error.add(want * 1.1, want)
    assert error.relative_l2 == pytest.approx(0.1)
    assert error.cosine == pytest.approx(1)
    error.add(np.array([-4.0, 3.0]), want)
    assert error.relative_l2 == pytest.approx(np.sqrt(2))
    assert error.cosine == pytest.approx(0)
    error.add(want, want)
    assert error.relative_l2 == pytest.approx(np.sqrt(2))
    error.add(np.array([np.nan, 4.0]), want)
    assert (error.relative_l2, error.cosine) == (np.inf, -1)
    nothing = StageError()
    nothing.add(np.zeros(2), np.zeros(2))
    assert (nothing.relative_l2, nothing.cosine) == (0, 1)
    nothing.add(np.zeros(2), want)
    assert (nothing.relative_l2, nothing.cosine) == (1, -1)


@pytest.mark.parametrize(
    ("gate", "late"), [("stages", 0.5), ("stages", np.nan), ("pixels", np.nan)]
)
def test_a_stage_added_late_is_judged_too(
    gate: str, late: float, mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    report = measured(mini, sample, spec, unchanged, trained=gate == "pixels")
    want: npt.NDArray[np.float32] = np.ones(4, np.float32)
    encoded = report.stages["text_encoder"] = StageError()
    encoded.add(want, want)
    report.judge()
    assert report.passed
    encoded.add(want * np.float32(late), want)
    report.judge()
    assert not report.passed


@pytest.mark.parametrize("block", ["image_encoder", "image_encoder.block1"])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_an_overflow_is_mended_by_float32_alone(
    block: str, precision: Precision, mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    report = measured(mini, sample, spec, unchanged)
    report.traps = [
        Trap(block="image_encoder.block1", tensor="t", op="MatMul", near="w", largest=1e6)
    ]
    report.kept_higher = [
        Kept(
            block=block,
            precision=precision,
            instead_of=Precision.INT8,
            why="",
            damage=2.0,
            bytes=0,
            milliseconds=None,
            timed="image_encoder",
        )
    ]
    report.judge()
    assert report.passed is (precision is Precision.FP32)
    assert report.passed or "image_encoder.block1 overflows" in report.reason()


def test_prompts_that_flip_count_where_a_budget_is_given(
    mini: EscNet, sample: Sample, spec: Preprocessing
) -> None:
    def mirrored(graph: str, out: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**out, "scores_out": out["scores_out"].flip(-1)} if graph == "esc0_text" else out

    report = measured(mini, sample, spec, mirrored, trained=True)
    report.budget = dataclasses.replace(STRICT, pixel_agreement=0.0)
    report.judge()
    assert report.passed
    assert "flipped" not in report.reason()
    assert 0 < report.flipped <= 0.5
    report.budget = dataclasses.replace(report.budget, prompt_flips=1.0)
    report.judge()
    assert report.passed
    assert "of prompts flipped, budget at most 100.00%" in report.reason()
    report.budget = dataclasses.replace(report.budget, prompt_flips=report.flipped / 2)
    report.judge()
    assert not report.passed
    assert "of prompts flipped, budget at most" in report.reason()
    assert report.damage() == pytest.approx(2 + 1 - report.pixel_agreement)


def test_labels_make_miou_count(mini: EscNet, sample: Sample, spec: Preprocessing) -> None:
    """The labels are what float32 torch says: its mIoU is 1, that of mirrored logits is less."""
    labels = label_map(sample.outcome.logits, 90, 120)
    labelled = dataclasses.replace(sample, labels=labels)
    same = measured(mini, labelled, spec, unchanged)
    assert (same.miou, same.reference_miou, same.miou_loss) == (1.0, 1.0, 0.0)
    assert same.passed
    assert "mIoU 100.00% where float32 torch has 100.00%" in same.reason()  # a verdict tells all
    report = measured(mini, labelled, spec, larger("decoder", "logits", -1.0), trained=True)
    report.budget = dataclasses.replace(STRICT, pixel_agreement=0.0)
    report.judge()
    assert report.reference_miou == 1
    assert report.miou is not None
    assert report.miou < 0.5
    assert report.missed() == [report.reason()]
    assert "mIoU" in report.reason()
    assert measured(mini, sample, spec, unchanged).miou is None


def test_default_budgets() -> None:
    assert Budget.default(Precision.FP32) == Budget(pixel_agreement=0.999, stage_l2=1e-4)
    assert Budget.default(Precision.FP16) == Budget(pixel_agreement=0.995, stage_l2=5e-3)
    assert Budget.default(Precision.BF16) == Budget(pixel_agreement=0.98, stage_l2=5e-2)
    assert Budget.default(Precision.FP16, Precision.BF16) == Budget.default(Precision.BF16)
    eight_bits = Budget(pixel_agreement=0.97, stage_l2=0.15)
    assert Budget.default(Precision.INT8) == Budget.default(Precision.FP8) == eight_bits
    assert Budget.default(Precision.FP16, Precision.INT8) == eight_bits
    assert Budget.default(Precision.INT8, Precision.FP16) == eight_bits
    assert Budget.default(Precision.INT8).miou_loss == 0.01


def test_label_maps_are_of_the_size_asked_for(sample: Sample, spec: Preprocessing) -> None:
    labels = label_map(sample.outcome.logits, 7, 90)
    assert labels.shape == (7, 90)
    cells = sample.outcome.logits.shape[1]
    same = label_map(sample.outcome.logits, cells, cells)
    np.testing.assert_array_equal(same, sample.outcome.logits.argmax(axis=0))


def test_the_picture_is_prepared_as_the_runtime_does(
    sample: Sample, spec: Preprocessing, picture: ImageArray
) -> None:
    np.testing.assert_array_equal(sample.calls[0].inputs["image"], preprocess(picture, spec))
