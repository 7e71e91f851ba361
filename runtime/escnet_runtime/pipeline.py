"""One image through the graphs on the CPU, chunk by chunk of categories.

The order is that of :mod:`escnet_runtime.order`. What joins categories is a sum, formed in fixed
groups (:mod:`escnet_runtime.groups`) and added up between chunks, so the result does not depend on
the chunk. Between the graphs run the prompt generator (:mod:`escnet_runtime.ppg`) and the sums.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.base import Array, Backend, Tensor
from .groups import GroupSums, category_chunks, group_weights
from .order import PROMPTS, READS, SUMS, WRITES, Step, image_steps, refined
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
class _Part:
    """One chunk of categories between graphs.

    ``rows`` are the categories that the graphs are given: those of ``where``, and padding.
    ``held`` is what it has of its own, by name.
    """

    where: slice
    rows: npt.NDArray[np.intp]
    held: dict[str, Tensor | Array]


@dataclass(slots=True)
class _Run:
    """One image under way: what all categories share, and each chunk's own."""

    shared: dict[str, Tensor | Array]
    parts: list[_Part]
    scores: _Floats
    prompts: Prompts | None = None
    sums: GroupSums = field(default_factory=GroupSums)

    def read(self, name: str, part: _Part | None) -> Tensor | Array:
        """What a graph's input ``name`` is given."""
        if part is not None:
            if name in PROMPTS:
                prompts: Array = getattr(self.prompts, name)[part.rows]
                return prompts
            if name == "scores":
                return self.scores[part.rows]
            if name in part.held:
                return part.held[name]
        return self.shared[name]


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
        run = self._started(encoded, text, chunk)
        steps = image_steps(self.blocks, len(run.parts))
        for step in itertools.islice(steps, 1, None):  # the first is the encoder, which has run
            if step.kind == "prompts":
                self._prompt(step, run, observer, prompts)
                continue
            part = None if step.chunk is None else run.parts[step.chunk]
            out = self._step(step, run, part, observer)
            if part is not None and step.kind == "decoder":
                part.held.clear()  # its memory is not needed any more
                yield part.where, self._own_rows(part, out["logits"])

    def features(self, encoded: EncodedImage) -> _Floats:
        """Unit-norm features float32 [1, D, h, w] on the host."""
        return self._floats(encoded.features)

    def scores(self, encoded: EncodedImage, text: _Floats, *, chunk: int, blocks: int) -> _Floats:
        """Scores float32 [N, h, w] of all categories after the first ``blocks`` ESC blocks.

        Arguments are those of :meth:`logits`.
        """
        run = self._started(encoded, text, chunk)
        for step in itertools.islice(image_steps(blocks, len(run.parts)), 1, None):
            if step.kind == "prompts":
                self._prompt(step, run, None, None)
            elif step.kind != "decoder":
                part = None if step.chunk is None else run.parts[step.chunk]
                self._step(step, run, part, None)
        return run.scores

    def _started(self, encoded: EncodedImage, text: _Floats, chunk: int) -> _Run:
        parts = []
        for where in category_chunks(len(text), chunk, self.group):
            rows = _rows(where, len(text))
            weight = group_weights(where.stop - where.start, len(text), self.group)
            parts.append(_Part(where, rows, {"text": text[rows], "weight": weight}))
        shared = {name: getattr(encoded, name) for name in WRITES["image_encoder"]}
        return _Run(shared, parts, np.empty((0, 0, 0), np.float32))

    def _prompt(
        self, step: Step, run: _Run, observer: Observer | None, source: PromptSource | None
    ) -> None:
        start = time.perf_counter()
        # All categories at once: a call of the generator has a fixed cost.
        assert step.block is not None
        prompts = source(step.block, run.scores) if source else pseudo_prompts(run.scores, self.ppg)
        run.prompts = prompts
        self.clock.add("prompts", start)
        if observer:
            observer(step.stage, slice(0, len(run.scores)), {"prompts": prompts})

    def _step(
        self, step: Step, run: _Run, part: _Part | None, observer: Observer | None
    ) -> dict[str, Tensor]:
        """Run a graph and keep what it gives."""
        inputs = {name: run.read(name, part) for name in READS[step.kind]}
        out = self._run(step.stage, inputs)
        if observer:
            observer(step.stage, slice(0, 1) if part is None else part.where, out)
        for name in WRITES[step.kind]:
            if name in SUMS:
                self._add(step, name, run, out[name])
            elif part is None:
                run.shared[refined(name)] = out[name]
            elif refined(name) == "scores":
                self._keep_scores(run, part, out[name])
            else:
                part.held[refined(name)] = out[name]
        return out

    def _add(self, step: Step, name: str, run: _Run, groups: Tensor) -> None:
        """Add the sums of a chunk's groups to those of the chunks before."""
        start = time.perf_counter()
        if step.chunk == 0:
            run.sums.pop(name, None)
        run.sums.add(name, self._floats(groups))
        mean = run.sums[name]
        run.shared[SUMS[name]] = mean[None] if name == "enhanced_sum" else mean
        self.clock.add("sums", start)

    def _keep_scores(self, run: _Run, part: _Part, scores: Tensor) -> None:
        own = self._own_rows(part, scores)
        if not run.scores.size:
            run.scores = np.empty((run.parts[-1].where.stop, *own.shape[1:]), np.float32)
        run.scores[part.where] = own

    def _run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        start = time.perf_counter()
        out = self.backend.run(graph, inputs)
        self.clock.add(graph, start)
        return out

    def _floats(self, tensor: Tensor) -> _Floats:
        return np.asarray(self.backend.to_host(tensor), np.float32)

    def _own_rows(self, part: _Part, tensor: Tensor) -> _Floats:
        """``tensor`` without the rows of padding."""
        return self._floats(tensor)[: part.where.stop - part.where.start]


def _rows(where: slice, categories: int) -> npt.NDArray[np.intp]:
    """The categories of a chunk; one that is left over is doubled (its double has no weight).

    Kernels for one row (gemv) add up in another order than those for many (gemm), so the last bits
    of a category alone in its chunk would differ from those it has in a larger one. A vocabulary of
    one category is alone in every chunk.
    """
    rows = np.arange(where.start, where.stop)
    return np.repeat(rows, 2) if len(rows) == 1 < categories else rows
