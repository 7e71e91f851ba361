"""The timed runs: one image through one graph of each kind, as the runtime runs it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, TypeAlias

import numpy as np

from escnet_runtime.backends import Backend, GraphFile, create_backend
from escnet_runtime.bundle import Bundle
from escnet_runtime.chunk_record import ChunkTime, CpuBackend
from escnet_runtime.closing import Closing
from escnet_runtime.order import by_chunk, kind_of
from escnet_runtime.pipeline import EncodedImage, Pipeline, StageClock

__all__ = ["BlockRuns", "Run", "kinds_of", "timed_in_turns"]

#: Called with a chunk; returns the seconds that each kind of graph took for all categories.
Run: TypeAlias = Callable[[int], Mapping[str, float]]
_SEED: Final = 0
_DECIMALS: Final = 7  # of a second


def kinds_of(graphs: Sequence[str]) -> dict[str, list[str]]:
    """Kind → graphs of that kind, for those of ``graphs`` that run chunk by chunk."""
    kinds: dict[str, list[str]] = {}
    for graph in graphs:
        if by_chunk(graph):
            kinds.setdefault(kind_of(graph), []).append(graph)
    return kinds


def timed_in_turns(
    run: Run, chunks: Sequence[int], rounds: int, step: Callable[[str], object] = lambda _: None
) -> dict[str, tuple[ChunkTime, ...]]:
    """Time of each kind of graph at each chunk: kind → one entry a chunk.

    Chunks take turns, upwards and downwards, so that other load on the machine affects all alike.
    A first run of each chunk, which loads its graphs, is not counted.

    Args:
        run: see :data:`Run`.
        chunks: categories at a time, ascending.
        rounds: timed runs of each chunk.
        step: called before each run with a text that names it.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for number in range(rounds + 1):
        for chunk in chunks if number % 2 else reversed(chunks):
            step(f"chunk {chunk}, {f'round {number}' if number else 'warm-up'}")
            seconds = run(chunk)
            for kind, spent in seconds.items() if number else ():
                found.setdefault(kind, {}).setdefault(chunk, []).append(spent)
    return {
        kind: tuple(
            ChunkTime(
                chunk=chunk,
                seconds=round(statistics.median(by_size[chunk]), _DECIMALS),
                fastest=round(min(by_size[chunk]), _DECIMALS),
                slowest=round(max(by_size[chunk]), _DECIMALS),
            )
            for chunk in chunks
        )
        for kind, by_size in found.items()
    }


class BlockRuns(Closing):
    """Runs the graphs around and in the first block of a bundle; a context manager.

    The first block stands for all, because blocks differ only in their weights. The picture is
    noise and the vocabulary is made up: no graph's time depends on either.

    Args:
        bundle: opened.
        backend: the backend to run on, with lanes and threads of its own choice.
        categories: number of categories in the vocabulary.

    Raises:
        BackendError: the backend is not installed; says what to install.
    """

    def __init__(self, bundle: Bundle, backend: CpuBackend, categories: int) -> None:
        self._bundle, self._name = bundle, backend
        self._pipelines: dict[int, Pipeline] = {}
        self._owned = ExitStack()
        model = bundle.manifest.model
        draw = np.random.Generator(np.random.PCG64(_SEED)).standard_normal
        shape = (1, 3, model.image_size, model.image_size)
        text = draw((categories, model.embed_dim), np.float32)
        self._text = text / np.linalg.norm(text, axis=1, keepdims=True)
        encoder = self._backend()
        try:
            encoded = self._pipeline(encoder).encode_image(draw(shape, np.float32))
            # On the host, so that the backends of all chunks can read them.
            self._encoded = EncodedImage(
                features=encoder.to_host(encoded.features),
                block_features=encoder.to_host(encoded.block_features),
                skip0=encoder.to_host(encoded.skip0),
                skip1=encoder.to_host(encoded.skip1),
            )
        finally:
            encoder.close()

    def close(self) -> None:
        """Close the backends."""
        self._owned.close()

    def __call__(self, chunk: int) -> dict[str, float]:
        """One image; see :data:`Run`."""
        if chunk not in self._pipelines:
            # A backend for each chunk: it keeps a graph for few sizes only, and a shared one would
            # load graphs again at every turn.
            backend = self._backend()
            self._owned.callback(backend.close)
            self._pipelines[chunk] = self._pipeline(backend)
        pipeline = self._pipelines[chunk]
        pipeline.clock = StageClock()
        for _ in pipeline.logits(self._encoded, self._text, chunk=chunk):
            pass
        kinds = kinds_of(list(pipeline.clock.seconds))
        return {kind: pipeline.clock.seconds[graph] for kind, (graph,) in kinds.items()}

    def _backend(self) -> Backend:
        stages = self._bundle.manifest.stages
        files = {
            name: GraphFile.of(self._bundle.file(stage.file), stage)
            for name, stage in stages.items()
        }
        return create_backend(files, self._name)

    def _pipeline(self, backend: Backend) -> Pipeline:
        constants = self._bundle.manifest.constants
        return Pipeline(backend, blocks=1, ppg=constants.ppg, group=constants.group)
