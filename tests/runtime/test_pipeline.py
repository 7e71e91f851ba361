"""The order of the graphs, and what joins chunks of categories: on made-up graphs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from escnet_runtime.errors import BackendError
from escnet_runtime.pipeline import Pipeline, StageClock, category_chunks
from escnet_runtime.ppg import PpgConstants, Prompts, pseudo_prompts

Floats = npt.NDArray[np.float32]
BLOCKS, GRID, WIDTH = 2, 4, 8
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
        total = (weight[:, None, None] * maps).sum(axis=0) + 0 * block_features
        return {"enhanced_sum": total.astype(np.float32)}

    def _fuse(self, block_features: Floats, enhanced_mean: Floats) -> dict[str, Any]:
        return {
            "block_features_out": block_features + enhanced_mean,
            "guidance": np.cos(enhanced_mean),
        }

    def _image(self, embedding: Any, guidance: Any, text: Any, weight: Any) -> dict[str, Any]:
        out = embedding + guidance
        total = (weight[:, None, None] * out).sum(axis=0, dtype=np.float32)
        return {
            "embedding_out": out,
            "kv_sum": total,
            "k_sum": np.array([weight.sum()], np.float32),
        }

    def _text(
        self, embedding: Any, text: Any, scores: Any, kv_mean: Any, k_mean: Any
    ) -> dict[str, Any]:
        assert k_mean == pytest.approx(1)  # the weights of all categories, not of the chunk
        out = (embedding + kv_mean).astype(np.float32)
        return {"embedding_out": out, "scores_out": scores + 0.01 * np.sin(out)}

    def _decoder(self, embedding: Any, skip0: Any, skip1: Any) -> dict[str, Any]:
        return {"logits": (embedding + skip0 * skip1).astype(np.float32)}


@pytest.fixture
def graphs() -> MadeUpGraphs:
    """A backend that remembers its calls."""
    return MadeUpGraphs()


@pytest.fixture
def pipeline(graphs: MadeUpGraphs) -> Pipeline:
    """A pipeline of two blocks over the made-up graphs."""
    return Pipeline(graphs, blocks=BLOCKS, ppg=PPG)


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


@given(st.integers(1, 3000), st.integers(1, 400))
def test_chunks_cover_all_categories_and_are_as_equal_as_can_be(
    categories: int, chunk: int
) -> None:
    chunks = category_chunks(categories, chunk)
    assert [i for part in chunks for i in range(part.start, part.stop)] == list(range(categories))
    sizes = {part.stop - part.start for part in chunks}
    assert max(sizes) <= chunk
    assert max(sizes) - min(sizes) <= 1
    assert len(chunks) == -(-categories // chunk)


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
    np.testing.assert_allclose(all_logits(pipeline, text, chunk), want, rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 11])
def test_weights_are_the_share_of_a_category_in_all(
    chunk: int, graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats
) -> None:
    all_logits(pipeline, text, chunk)
    for name, inputs in graphs.calls:
        if "weight" in inputs:
            assert inputs["weight"].dtype == np.float32, name
            np.testing.assert_allclose(inputs["weight"], 1 / len(text))


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


def test_logits_come_chunk_by_chunk(graphs: MadeUpGraphs, pipeline: Pipeline, text: Floats) -> None:
    """A caller that stops early has not paid for the rest."""
    parts = pipeline.logits(pipeline.encode_image(image()), text, chunk=3)
    where, logits = next(parts)
    assert where == slice(0, 3)
    assert logits.dtype == np.float32
    assert logits.shape == (3, GRID, GRID)
    assert sum(name == "decoder" for name, _ in graphs.calls) == 1


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
