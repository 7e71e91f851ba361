"""One image through the graphs on the CPU, chunk by chunk of categories.

The order is that of :mod:`escnet_runtime.order`. What joins categories is a sum, formed in fixed
groups (:mod:`escnet_runtime.groups`) and added up between chunks, so the result does not depend on
the chunk. Chunks may run side by side (:mod:`escnet_runtime.lanes`); what becomes of their results
is done here, in order. Between the graphs run the prompt generator (:mod:`escnet_runtime.ppg`) and
the sums.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .backends.arrays import ArrayPool
from .backends.base import Array, Backend, Tensor
from .groups import GroupSums, category_chunks, group_weights
from .lanes import Lanes, RunsSideBySide
from .order import PROMPTS, READS, SUMS, WRITES, Step, image_steps, refined
from .ppg import PpgConstants, Prompts, pseudo_prompts

__all__ = ["EncodedImage", "Observer", "Pipeline", "PromptSource", "StageClock"]

_Floats = npt.NDArray[np.float32]

#: Called with the stage ("esc0_sam", "esc0_prompts", …), the chunk and its outputs by name. Rows of
#: an output that are more than the chunk has categories are padding.
Observer = Callable[[str, slice, Mapping[str, Any]], None]
#: (block, scores float32 [N, h, w]) → prompts of all categories.
PromptSource = Callable[[int, _Floats], Prompts]


_FLOAT32_BYTES: Final = 4
#: Embeddings that the decoder is given at a time, in float32. It makes maps of them that are four
#: times as large, several at once. Measured with ``vit-b-16`` on two cores of an AMD EPYC, with 4
#: categories, which these are, in place of 16: 3 % less time in the decoder, 80 MB less memory.
_DECODED_BYTES: Final = 1_250_000
#: … but so many categories at least: of pieces as equal as they can be, none is then a category
#: alone, unless that is alone in its chunk (see _rows).
_DECODED_ROWS: Final = 3


@dataclass(slots=True)
class StageClock:
    """Seconds spent in each stage, added up over calls.

    Chunks that run side by side count once: the time until all of them are done.
    """

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
        self._arrays = ArrayPool()

    def encode_text(self, tokens: npt.NDArray[np.int32]) -> _Floats:
        """Unit-norm embeddings float32 [t, D] of int32 tokens [t, l]."""
        start = time.perf_counter()
        out = self.backend.run("text_encoder", {"tokens": tokens})
        self.clock.add("text_encoder", start)
        return self._floats(out["embeddings"])

    def encode_image(self, image: _Floats, observer: Observer | None = None) -> EncodedImage:
        """Encode one normalised image [1, 3, S, S]."""
        start = time.perf_counter()
        out = self.backend.run("image_encoder", {"image": image})
        self.clock.add("image_encoder", start)
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
        for step, out in self._followed(steps, run, observer, prompts):
            if step.kind == "decoder":
                assert step.chunk is not None
                part = run.parts[step.chunk]
                part.held.clear()  # its memory is not needed any more
                yield part.where, self._own_rows(part, out["logits"])

    def _followed(
        self,
        steps: Iterator[Step],
        run: _Run,
        observer: Observer | None = None,
        prompts: PromptSource | None = None,
    ) -> Iterator[tuple[Step, dict[str, Tensor]]]:
        """Run all steps behind the encoder; yields each step of a graph with the outputs.

        No chunk of a stage reads what another chunk of that stage gives, so they may run side by
        side.
        """
        rows = [len(part.rows) for part in run.parts]
        backend = self.backend
        with Lanes(backend.lanes(rows) if isinstance(backend, RunsSideBySide) else 1) as lanes:
            for stage, same in itertools.groupby(itertools.islice(steps, 1, None), _stage):
                chunks = list(same)
                if chunks[0].kind == "prompts":
                    self._prompt(chunks[0], run, observer, prompts)
                    continue
                results = lanes.each(lambda step: self._outputs(step, run), chunks)
                for step, out in zip(chunks, self._timed(stage, results), strict=True):
                    self._keep(step, run, out, observer)
                    yield step, out

    def features(self, encoded: EncodedImage) -> _Floats:
        """Unit-norm features float32 [1, D, h, w] on the host."""
        return self._floats(encoded.features)

    def scores(self, encoded: EncodedImage, text: _Floats, *, chunk: int, blocks: int) -> _Floats:
        """Scores float32 [N, h, w] of all categories after the first ``blocks`` ESC blocks.

        Arguments are those of :meth:`logits`.
        """
        run = self._started(encoded, text, chunk)
        for _ in self._followed(image_steps(blocks, len(run.parts), decoded=False), run):
            pass
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

    def _outputs(self, step: Step, run: _Run) -> dict[str, Tensor]:
        """Run a step's graph; only reads ``run``."""
        part = None if step.chunk is None else run.parts[step.chunk]
        inputs = {name: run.read(name, part) for name in READS[step.kind]}
        if step.kind == "decoder":
            return {"logits": self._decoded(inputs)}
        return self.backend.run(step.stage, inputs)

    def _decoded(self, inputs: Mapping[str, Tensor | Array]) -> Tensor:
        """A chunk's logits, a few categories at a time: nothing is summed over them here."""
        embedding = inputs["embedding"]
        rows = len(embedding)
        most = max(
            _DECODED_ROWS, _DECODED_BYTES * rows // (_FLOAT32_BYTES * math.prod(embedding.shape))
        )
        if rows <= most:
            return self.backend.run("decoder", inputs)["logits"]

        def decoded(piece: Tensor | Array) -> _Floats:
            return self._floats(
                self.backend.run("decoder", {**inputs, "embedding": piece})["logits"]
            )

        found = [decoded(embedding[where]) for where in _equal_slices(rows, most)]
        logits = self._arrays.empty((rows, *found[0].shape[1:]), np.float32)
        return np.concatenate(found, out=logits)

    def _keep(
        self, step: Step, run: _Run, out: dict[str, Tensor], observer: Observer | None
    ) -> None:
        """Keep what a graph gave."""
        part = None if step.chunk is None else run.parts[step.chunk]
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

    def _timed(
        self, stage: str, results: Iterable[dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """Pass results on, and count the time until each is there for the stage."""
        remaining = iter(results)
        while True:
            start = time.perf_counter()
            out = next(remaining, None)
            self.clock.add(stage, start)
            if out is None:
                return
            yield out

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

    def _floats(self, tensor: Tensor) -> _Floats:
        return np.asarray(self.backend.to_host(tensor), np.float32)

    def _own_rows(self, part: _Part, tensor: Tensor) -> _Floats:
        """``tensor`` without the rows of padding."""
        return self._floats(tensor)[: part.where.stop - part.where.start]


def _stage(step: Step) -> str:
    return step.stage


def _equal_slices(rows: int, most: int) -> list[slice]:
    """As few slices of at most ``most`` rows as there can be; their lengths differ by 1 at most."""
    pieces = -(-rows // most)
    edges = [rows * index // pieces for index in range(pieces + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _rows(where: slice, categories: int) -> npt.NDArray[np.intp]:
    """The categories of a chunk; one that is left over is doubled (its double has no weight).

    Kernels for one row (gemv) add up in another order than those for many (gemm), so the last bits
    of a category alone in its chunk would differ from those it has in a larger one. A vocabulary of
    one category is alone in every chunk.
    """
    rows = np.arange(where.start, where.stop)
    return np.repeat(rows, 2) if len(rows) == 1 < categories else rows
