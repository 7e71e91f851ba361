"""The order of the graphs for one image, chunk by chunk of categories.

What joins categories is a sum, formed in fixed groups (:mod:`escnet_runtime.groups`) and added up
between chunks, so the result does not depend on the chunk. Between the graphs run the prompt
generator (:mod:`escnet_runtime.ppg`) and the sums.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.base import Array, Backend, Tensor
from .groups import GroupSums, category_chunks, group_weights
from .ppg import PpgConstants, Prompts, pseudo_prompts

__all__ = ["EncodedImage", "Observer", "Pipeline", "PromptSource", "StageClock"]

_Floats = npt.NDArray[np.float32]

#: Called with the stage ("esc0_sam", "esc0_prompts", …), the chunk and its outputs by name. Rows of
#: an output that are more than the chunk has categories are padding.
Observer = Callable[[str, slice, Mapping[str, Any]], None]
#: (block, scores float32 [N, h, w]) → prompts of all categories.
PromptSource = Callable[[int, _Floats], Prompts]


@dataclass(slots=True)
class StageClock:
    """Seconds spent in each stage, added up over calls."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, start: float) -> None:
        """Add the time since ``start`` (of ``time.perf_counter``) to ``stage``."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """Outputs of the image encoder for one image."""

    features: Tensor
    block_features: Tensor
    skip0: Tensor
    skip1: Tensor


@dataclass(slots=True)
class _State:
    """What is known of one chunk of categories between graphs.

    ``rows`` are the categories that the graphs are given: those of ``where``, and padding.
    """

    where: slice
    rows: npt.NDArray[np.intp]
    text: _Floats
    weight: _Floats
    embedding: Tensor


class Pipeline:
    """Runs an ESC-Net's graphs on a backend.

    Args:
        backend: runs the graphs.
        blocks: number of ESC blocks.
        ppg: constants of the prompt generator.
        group: categories whose sum a graph gives at a time.
    """

    def __init__(self, backend: Backend, *, blocks: int, ppg: PpgConstants, group: int) -> None:
        self.backend, self.blocks, self.ppg, self.group = backend, blocks, ppg, group
        self.clock = StageClock()

    def encode_text(self, tokens: npt.NDArray[np.int32]) -> _Floats:
        """Unit-norm embeddings float32 [t, D] of int32 tokens [t, l]."""
        return self._floats(self._run("text_encoder", {"tokens": tokens})["embeddings"])

    def encode_image(self, image: _Floats, observer: Observer | None = None) -> EncodedImage:
        """Encode one normalised image [1, 3, S, S]."""
        out = self._run("image_encoder", {"image": image})
        if observer:
            observer("image_encoder", slice(0, 1), out)
        return EncodedImage(out["features"], out["block_features"], out["skip0"], out["skip1"])

    def logits(
        self,
        encoded: EncodedImage,
        text: _Floats,
        *,
        chunk: int,
        observer: Observer | None = None,
        prompts: PromptSource | None = None,
    ) -> Iterator[tuple[slice, _Floats]]:
        """Logits float32 [n, l, l], chunk by chunk in order.

        Args:
            encoded: from :meth:`encode_image`.
            text: float32 [N, D] unit-norm embeddings.
            chunk: categories at a time, rounded up to whole groups; bounds the memory, does not
                change the result.
            observer: sees every stage's outputs.
            prompts: replaces the prompt generator: (block, scores) → prompts.
        """
        states, scores = self._correlate(encoded, text, chunk, observer)
        features = encoded.block_features
        for block in range(self.blocks):
            features = self._block(block, features, states, scores, observer, prompts)
        for state in states:
            out = self._run(
                "decoder",
                {"embedding": state.embedding, "skip0": encoded.skip0, "skip1": encoded.skip1},
            )
            state.embedding = None  # its memory is not needed any more
            if observer:
                observer("decoder", state.where, out)
            yield state.where, self._own_rows(state, out["logits"])

    def _correlate(
        self, encoded: EncodedImage, text: _Floats, chunk: int, observer: Observer | None
    ) -> tuple[list[_State], _Floats]:
        """The chunks, and the scores of all categories, float32 [N, h, w]."""
        states, scores = [], []
        for where in category_chunks(len(text), chunk, self.group):
            rows = _rows(where, len(text))
            part = text[rows]
            out = self._run("correlation", {"features": encoded.features, "text": part})
            if observer:
                observer("correlation", where, out)
            weight = group_weights(where.stop - where.start, len(text), self.group)
            states.append(_State(where, rows, part, weight, out["embedding"]))
            scores.append(self._own_rows(states[-1], out["scores"]))
        return states, np.concatenate(scores)

    def _block(
        self,
        block: int,
        features: Tensor,
        states: list[_State],
        scores: _Floats,
        observer: Observer | None,
        source: PromptSource | None,
    ) -> Tensor:
        """Run one ESC block; ``scores`` are refined in place. Returns the new block features."""
        start = time.perf_counter()
        # All categories at once: a call of the generator has a fixed cost.
        prompts = source(block, scores) if source else pseudo_prompts(scores, self.ppg)
        self.clock.add("prompts", start)
        if observer:
            observer(f"esc{block}_prompts", slice(0, len(scores)), {"prompts": prompts})
        enhanced = GroupSums()
        for state in states:
            inputs = {
                "block_features": features,
                "points": prompts.points[state.rows],
                "point_labels": prompts.point_labels[state.rows],
                "regions": prompts.regions[state.rows],
                "probabilities": prompts.probabilities[state.rows],
                "weight": state.weight,
            }
            self._add(enhanced, f"esc{block}_sam", inputs, state.where, observer)
        out = self._run(
            f"esc{block}_fuse",
            {"block_features": features, "enhanced_mean": enhanced["enhanced_sum"][None]},
        )
        if observer:
            observer(f"esc{block}_fuse", slice(0, 1), out)
        self._refine(block, out["guidance"], states, scores, observer)
        return out["block_features_out"]

    def _refine(
        self,
        block: int,
        guidance: Tensor,
        states: list[_State],
        scores: _Floats,
        observer: Observer | None,
    ) -> None:
        sums = GroupSums()
        for state in states:
            inputs = {
                "embedding": state.embedding,
                "guidance": guidance,
                "text": state.text,
                "weight": state.weight,
            }
            out = self._add(sums, f"esc{block}_image", inputs, state.where, observer)
            state.embedding = out["embedding_out"]
        for state in states:
            inputs = {
                "embedding": state.embedding,
                "text": state.text,
                "scores": scores[state.rows],
                "kv_mean": sums["kv_sum"],
                "k_mean": sums["k_sum"],
            }
            out = self._run(f"esc{block}_text", inputs)
            if observer:
                observer(f"esc{block}_text", state.where, out)
            state.embedding = out["embedding_out"]
            scores[state.where] = self._own_rows(state, out["scores_out"])

    def _add(
        self,
        sums: GroupSums,
        graph: str,
        inputs: Mapping[str, Tensor | Array],
        where: slice,
        observer: Observer | None,
    ) -> dict[str, Tensor]:
        """Run ``graph`` and add its ``*_sum`` outputs up."""
        out = self._run(graph, inputs)
        if observer:
            observer(graph, where, out)
        start = time.perf_counter()
        for name, tensor in out.items():
            if name.endswith("_sum"):
                sums.add(name, self._floats(tensor))
        self.clock.add("sums", start)
        return out

    def _run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        start = time.perf_counter()
        out = self.backend.run(graph, inputs)
        self.clock.add(graph, start)
        return out

    def _floats(self, tensor: Tensor) -> _Floats:
        return np.asarray(self.backend.to_host(tensor), np.float32)

    def _own_rows(self, state: _State, tensor: Tensor) -> _Floats:
        """``tensor`` without the rows of padding."""
        return self._floats(tensor)[: state.where.stop - state.where.start]


def _rows(where: slice, categories: int) -> npt.NDArray[np.intp]:
    """The categories of a chunk; one that is left over is doubled (its double has no weight).

    Kernels for one row (gemv) add up in another order than those for many (gemm), so the last bits
    of a category alone in its chunk would differ from those it has in a larger one. A vocabulary of
    one category is alone in every chunk.
    """
    rows = np.arange(where.start, where.stop)
    return np.repeat(rows, 2) if len(rows) == 1 < categories else rows
