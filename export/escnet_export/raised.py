"""The cost of raised blocks: bytes in the bundle, and time of a run on this machine's CPU."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from escnet.model import EscNet
from escnet_runtime.backends.base import Array
from escnet_runtime.manifest import Precision

from .decision import Decision
from .kept import Kept
from .parity import Sample, feeds_of
from .plan import graph_of, part_of
from .texts import TEXT_ENCODER, Texts
from .workshop import Built, Step, open_backend

__all__ = ["raised_blocks"]

#: Timed runs of each of two files, which take turns; medians are compared.
_REPEATS: Final = 7
#: Bytes of a weight.
_WEIGHT_BYTES: Final = {
    Precision.FP32: 4,
    Precision.FP16: 2,
    Precision.BF16: 2,
    Precision.INT8: 1,
    Precision.FP8: 1,
}
_IMAGE_ENCODER_WEIGHTS: Final = ("block_projection.", "skip0.", "skip1.", "clip.visual.")


def raised_blocks(
    before: Decision,
    after: Decision,
    *,
    model: EscNet,
    samples: Sequence[Sample],
    texts: Texts,
    reasons: Mapping[str, str],
    damages: Mapping[str, float | None],
    step: Step,
) -> list[Kept]:
    """An entry for each block that is raised in ``after``, with its cost.

    Args:
        before: the files as they were asked for.
        after: the files with raised blocks.
        model: its weights are counted where a part of a graph is raised.
        samples: timed runs get the inputs that float32 torch gave a graph for the first of these.
        texts: inputs of the text encoder.
        reasons: block → why it was raised, a clause.
        damages: block → its damage alone, in budgets; None if it overflowed.
        step: called with the name of each graph that is timed.
    """
    weights = _weights_by_part(model)
    milliseconds: dict[str, float] = {}
    kept = []
    for block, precision in after.plan.raised.items():
        graph, asked = graph_of(block), before.plan.precision(block)
        old, new = before.built[graph], after.built[graph]
        if graph not in milliseconds:
            step(f"time {graph}")
            feeds = [_feeds(built, samples[0], texts) for built in (old, new)]
            milliseconds[graph] = _slower(old, new, feeds)
        if block == graph:
            size = new.path.stat().st_size - old.path.stat().st_size
        else:  # the file may have other raised parts too: count this part's weights
            size = weights[block] * (_WEIGHT_BYTES[precision] - _WEIGHT_BYTES[asked])
        kept.append(
            Kept(
                block=block,
                precision=precision,
                instead_of=asked,
                why=reasons[block],
                damage=damages[block],
                bytes=size,
                milliseconds=milliseconds[graph],
                timed=graph,
            )
        )
    return kept


def _slower(old: Built, new: Built, feeds: Sequence[Mapping[str, Array]]) -> float:
    """Milliseconds by which a run of ``new`` takes longer: medians of runs that take turns."""
    runs = []
    for built, inputs in zip((old, new), feeds, strict=True):
        runs.append((open_backend({built.graph.name: built}), inputs, list[float]()))
    try:
        for turn in range(_REPEATS + 1):
            for backend, inputs, seconds in runs:
                begin = time.perf_counter()
                backend.run(old.graph.name, inputs)
                if turn:  # the first run loads and warms up
                    seconds.append(time.perf_counter() - begin)
    finally:
        for backend, _, _ in runs:
            backend.close()
    first, second = (statistics.median(seconds) for _, _, seconds in runs)
    return 1e3 * (second - first)


def _feeds(built: Built, sample: Sample, texts: Texts) -> dict[str, Array]:
    """The inputs of a graph, cast to the types that its file takes."""
    name = built.graph.name
    if name == TEXT_ENCODER:
        return {"tokens": texts.tokens}
    types = {port.name: port.dtype(torch.float32) for port in built.graph.inputs}
    return feeds_of(next(call for call in sample.calls if call.graph == name), types)


def _weights_by_part(model: EscNet) -> dict[str, int]:
    """Number of weights of each part of the image encoder."""
    counts: dict[str, int] = {}
    for name, tensor in model.named_parameters():
        if name.startswith(_IMAGE_ENCODER_WEIGHTS):
            counts[part_of(name)] = counts.get(part_of(name), 0) + tensor.numel()
    return counts
