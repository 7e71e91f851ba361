"""The order of the graphs, and what joins chunks of categories: on made-up graphs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.errors import BackendError
from escnet_runtime.pipeline import Pipeline, StageClock
from escnet_runtime.ppg import PpgConstants, Prompts, pseudo_prompts

Floats = npt.NDArray[np.float32]
BLOCKS, GRID, WIDTH, GROUP = 2, 4, 8, 3
PPG = PpgConstants()


class MadeUpGraphs:
    """A backend whose graphs are a few lines of NumPy each, with sums over the categories."""

    name = description = "made up"

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one of the graphs of a model."""
        self.calls.append((graph, {name: np.array(value) for name, value in inputs.items()}))
        role = graph.partition("_")[2] if graph.startswith("esc") else graph
        outputs: dict[str, Any] = getattr(self, f"_{role}")(**inputs)
        return outputs

    def to_host(self, tensor: Any) -> Any:
        """Tensors are arrays here."""
        return tensor

    def release(self, graph: str) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to free."""

    def _text_encoder(self, tokens: Any) -> dict[str, Any]:
        return {"embeddings": tokens[:, :WIDTH].astype(np.float16)}

    def _image_encoder(self, image: Floats) -> dict[str, Any]:
        maps = image[0].mean() + np.arange(GRID * GRID, dtype=np.float32).reshape(GRID, GRID)
        return {"features": maps, "block_features": maps / 7, "skip0": maps + 1, "skip1": maps + 2}

    def _correlation(self, features: Floats, text: Floats) -> dict[str, Any]:
        scores = text.sum(axis=1)[:, None, None] * np.sin(features)
        return {"scores": scores.astype(np.float32), "embedding": scores.astype(np.float32) + 1}

    def _sam(self, block_features: Floats, weight: Floats, **prompts: Any) -> dict[str, Any]:
        own = prompts["points"].sum(axis=(1, 2)) + prompts["point_labels"].sum(axis=1)
        maps = own[:, None, None] + prompts["regions"] * prompts["probabilities"]
        return {"enhanced_sum": group_sums(maps + 0 * block_features, weight)}

    def _fuse(self, block_features: Floats, enhanced_mean: Floats) -> dict[str, Any]:
        assert enhanced_mean.shape == (1, GRID, GRID)
        return {
            "block_features_out": block_features + enhanced_mean[0],
            "guidance": np.cos(enhanced_mean),
        }

    def _image(self, embedding: Any, guidance: Any, text: Any, weight: Any) -> dict[str, Any]:
        out = embedding + guidance
        return {
            "embedding_out": out,
            "kv_sum": group_sums(out, weight),
            "k_sum": group_sums(np.ones((len(out), 1)), weight),
        }

    def _text(
        self, embedding: Any, text: Any, scores: Any, kv_mean: Any, k_mean: Any
    ) -> dict[str, Any]:
        assert k_mean == pytest.approx(1)  # the weights of all categories, not of the chunk
        out = (embedding + kv_mean).astype(np.float32)
        return {"embedding_out": out, "scores_out": scores + 0.01 * np.sin(out)}

    def _decoder(self, embedding: Any, skip0: Any, skip1: Any) -> dict[str, Any]:
        return {"logits": (embedding + skip0 * skip1).astype(np.float32)}


def group_sums(values: Any, weight: Floats) -> Floats:
    """[n, ...] and [g, GROUP] → [g, ...]; rows behind those that have a weight are ignored."""
    assert weight.shape[1] == GROUP
    used = min(weight.size, len(values))
    shares = weight.ravel()[:used]
    assert not weight.ravel()[used:].any()
    weighted = shares.reshape(-1, *[1] * (values.ndim - 1)) * values[:used]
    parts = [weighted[i : i + GROUP].sum(axis=0) for i in range(0, used, GROUP)]
    return np.stack(parts).astype(np.float32)


@pytest.fixture
def graphs() -> MadeUpGraphs:
    """A backend that remembers its calls."""
    return MadeUpGraphs()


@pytest.fixture
def pipeline(graphs: MadeUpGraphs) -> Pipeline:
    """A pipeline of two blocks over the made-up graphs."""
    return Pipeline(graphs, blocks=BLOCKS, ppg=PPG, group=GROUP)


@pytest.fixture(scope="module")
def text() -> Floats:
    """Eleven categories."""
    made = np.random.Generator(np.random.PCG64(8)).standard_normal((11, WIDTH))
    return made.astype(np.float32)


def image() -> Floats:
    """Any input image."""
    return np.full((1, 3, 5, 5), 0.25, np.float32)


def all_logits(pipeline: Pipeline, text: Floats, chunk: int) -> Floats:
    """Logits of every category."""
    encoded = pipeline.encode_image(image())
    return np.concatenate([part for _, part in pipeline.logits(encoded, text, chunk=chunk)])


def test_the_order_of_the_graphs(graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats) -> None:
    all_logits(pipeline, text, 6)
    block = [["sam"] * 2, ["fuse"], ["image"] * 2, ["text"] * 2]
    parts = [part for group in block for part in group]
    assert [name for name, _ in graphs.calls] == [
        *("image_encoder", "correlation", "correlation"),
        *(f"esc{index}_{part}" for index in range(BLOCKS) for part in parts),
        *("decoder", "decoder"),
    ]


@pytest.mark.parametrize("chunk", [1, 2, 5, 10, 100])
def test_chunks_change_nothing(chunk: int, pipeline: Pipeline, text: Floats) -> None:
    want = all_logits(pipeline, text, len(text))
    np.testing.assert_array_equal(all_logits(pipeline, text, chunk), want)


@pytest.mark.parametrize("chunk", [3, 11])
def test_weights_are_the_share_of_a_category_in_all(
    chunk: int, graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats
) -> None:
    all_logits(pipeline, text, chunk)
    weighed = [(name, inputs) for name, inputs in graphs.calls if "weight" in inputs]
    assert {name.partition("_")[2] for name, _ in weighed} == {"sam", "image"}
    for name, inputs in weighed:
        weight = inputs["weight"]
        assert weight.dtype == np.float32, name
        used = min(len(inputs["text"]) if "text" in inputs else len(inputs["points"]), 11)
        assert weight.shape == (-(-used // GROUP), GROUP)
        np.testing.assert_allclose(weight.ravel()[:used], 1 / len(text))
        assert not weight.ravel()[used:].any()


def test_each_block_gets_prompts_from_the_scores_of_the_one_before(
    graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats
) -> None:
    scores: dict[str, Floats] = {}

    def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        for name, tensor in outputs.items():
            if name in ("scores", "scores_out"):
                scores.setdefault(stage, np.empty((len(text), GRID, GRID), np.float32))
                scores[stage][where] = tensor

    encoded = pipeline.encode_image(image())
    list(pipeline.logits(encoded, text, chunk=4, observer=observe))
    for block, before in enumerate(("correlation", "esc0_text")):
        want = pseudo_prompts(scores[before], PPG)
        calls = [inputs for name, inputs in graphs.calls if name == f"esc{block}_sam"]
        for part in ("points", "point_labels", "regions", "probabilities"):
            got = np.concatenate([inputs[part] for inputs in calls])
            np.testing.assert_array_equal(got, getattr(want, part))


def test_the_observer_sees_every_stage_and_chunk(pipeline: Pipeline, text: Floats) -> None:
    seen: list[tuple[str, int, int]] = []

    def observe(stage: str, where: slice, _: Mapping[str, Any]) -> None:
        seen.append((stage, where.start, where.stop))

    encoded = pipeline.encode_image(image(), observe)
    list(pipeline.logits(encoded, text, chunk=6, observer=observe))
    halves = [(0, 6), (6, 11)]
    assert seen[0] == ("image_encoder", 0, 1)
    for stage in ("correlation", "esc0_sam", "esc1_image", "esc1_text", "decoder"):
        assert [where for name, *where in seen if name == stage] == [list(h) for h in halves]
    for stage in ("esc0_prompts", "esc1_prompts"):
        assert [where for name, *where in seen if name == stage] == [[0, 11]]
    assert [where for name, *where in seen if name == "esc1_fuse"] == [[0, 1]]


def test_prompts_may_come_from_elsewhere(
    graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats
) -> None:
    fixed = pseudo_prompts(np.zeros((len(text), GRID, GRID), np.float32), PPG)
    asked: list[int] = []

    def source(block: int, scores: Floats) -> Prompts:
        asked.append(block)
        assert scores.shape == (len(text), GRID, GRID)
        return fixed

    encoded = pipeline.encode_image(image())
    list(pipeline.logits(encoded, text, chunk=4, prompts=source))
    assert asked == list(range(BLOCKS))
    points = [inputs["points"] for name, inputs in graphs.calls if name == "esc1_sam"]
    np.testing.assert_array_equal(np.concatenate(points), fixed.points)


@pytest.mark.parametrize(("categories", "seen"), [(10, [3, 3, 3, 2]), (1, [1])])
def test_a_category_alone_in_its_chunk_is_doubled(
    categories: int, seen: list[int], graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats
) -> None:
    """Unless it is the only one: then it is alone in every chunk."""
    want = all_logits(pipeline, text[:categories], 12)
    graphs.calls.clear()
    got = all_logits(pipeline, text[:categories], 3)
    np.testing.assert_array_equal(got, want)
    for graph in ("correlation", "esc1_image", "esc1_text"):
        calls = [inputs for name, inputs in graphs.calls if name == graph]
        assert [len(inputs["text"]) for inputs in calls] == seen
    weights = [inputs["weight"] for name, inputs in graphs.calls if name == "esc1_sam"]
    assert sum(int((weight > 0).sum()) for weight in weights) == categories


def test_logits_come_chunk_by_chunk(graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats) -> None:
    """A caller that stops early has not paid for the rest."""
    parts = pipeline.logits(pipeline.encode_image(image()), text, chunk=3)
    where, logits = next(parts)
    assert where == slice(0, 3)
    assert logits.dtype == np.float32
    assert logits.shape == (3, GRID, GRID)
    assert sum(name == "decoder" for name, _ in graphs.calls) == 1


@pytest.mark.parametrize(
    ("chunk", "seen"), [(12, [3, 4, 4]), (6, [3, 3, 2, 3]), (3, [3, 3, 3, 2]), (100, [3, 4, 4])]
)
def test_the_decoder_is_given_few_categories_at_a_time(
    chunk: int,
    seen: list[int],
    graphs: MadeUpGraphs,
    pipeline: Pipeline,
    text: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the bytes of its maps, never one alone, and the observer does not notice."""
    want = all_logits(pipeline, text, chunk)
    graphs.calls.clear()
    monkeypatch.setattr("escnet_runtime.pipeline._DECODED_BYTES", 4 * (4 * GRID * GRID) + 3)
    stages: list[tuple[slice, int]] = []

    def observe(stage: str, where: slice, outputs: Mapping[str, Any]) -> None:
        if stage == "decoder":
            stages.append((where, len(outputs["logits"])))

    encoded = pipeline.encode_image(image())
    parts = list(pipeline.logits(encoded, text, chunk=chunk, observer=observe))
    np.testing.assert_array_equal(np.concatenate([logits for _, logits in parts]), want)
    calls = [inputs["embedding"] for name, inputs in graphs.calls if name == "decoder"]
    assert [len(embedding) for embedding in calls] == seen
    assert [where for where, _ in stages] == [where for where, _ in parts]
    # A category left over at the end has its double behind it, as in every graph.
    assert all(where.stop - where.start <= count for where, count in stages)


@pytest.mark.parametrize("categories", range(1, 12))
@pytest.mark.parametrize("budget", [0, 1, 64, 500])
def test_no_category_is_decoded_alone_unless_it_is_alone(
    budget: int,
    categories: int,
    graphs: MadeUpGraphs,
    pipeline: Pipeline,
    text: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("escnet_runtime.pipeline._DECODED_BYTES", budget)
    logits = all_logits(pipeline, text[:categories], 12)
    assert len(logits) == categories
    calls = [len(inputs["embedding"]) for name, inputs in graphs.calls if name == "decoder"]
    assert sum(calls) == categories
    assert min(calls) >= min(2, categories)


def test_the_callers_embeddings_are_left_alone(pipeline: Pipeline, text: Floats) -> None:
    """They belong to a vocabulary that other threads use: a read-only array must do."""
    locked = text.copy()
    locked.flags.writeable = False
    all_logits(pipeline, locked, 4)
    np.testing.assert_array_equal(locked, text)


def test_results_are_float32_whatever_the_graphs_give(pipeline: Pipeline) -> None:
    tokens = np.arange(3 * WIDTH, dtype=np.int32).reshape(3, WIDTH)
    assert pipeline.encode_text(tokens).dtype == np.float32


def test_a_failing_graph_is_not_hidden(
    graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> dict[str, Any]:
        raise BackendError("graph 'esc1_fuse' failed")

    encoded = pipeline.encode_image(image())
    monkeypatch.setattr(graphs, "_fuse", fail)
    with pytest.raises(BackendError, match="esc1_fuse"):
        list(pipeline.logits(encoded, text, chunk=4))


def test_time_is_kept_by_stage(pipeline: Pipeline, text: Floats) -> None:
    all_logits(pipeline, text, 4)
    seconds = pipeline.clock.seconds
    assert seconds.keys() >= {"image_encoder", "correlation", "prompts", "esc1_text", "decoder"}
    assert all(value >= 0 for value in seconds.values())
    clock = StageClock()
    clock.add("a", 0.0)
    first = clock.seconds["a"]
    clock.add("a", 0.0)
    assert clock.seconds["a"] > first
