"""The order in which an image runs through the graphs, and what each graph reads and writes.

Written once, as data: the pipeline on the CPU follows it step by step, the one on a GPU plans its
memory from it and then enqueues it. Names are those of the graphs' ports (docs/bundle.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = [
    "PROMPTS",
    "READS",
    "SUMS",
    "WRITES",
    "Step",
    "by_chunk",
    "image_steps",
    "kind_of",
    "refined",
]

#: What the prompt generator writes, of all categories at once.
PROMPTS: Final = ("points", "point_labels", "regions", "probabilities")

#: Kind of a graph → its inputs.
READS: Final = {
    "image_encoder": ("image",),
    "correlation": ("features", "text"),
    "sam": ("block_features", *PROMPTS, "weight"),
    "fuse": ("block_features", "enhanced_mean"),
    "image": ("embedding", "guidance", "text", "weight"),
    "text": ("embedding", "text", "scores", "kv_mean", "k_mean"),
    "decoder": ("embedding", "skip0", "skip1"),
}

#: Kind of a graph → its outputs.
WRITES: Final = {
    "image_encoder": ("features", "block_features", "skip0", "skip1"),
    "correlation": ("scores", "embedding"),
    "sam": ("enhanced_sum",),
    "fuse": ("block_features_out", "guidance"),
    "image": ("embedding_out", "kv_sum", "k_sum"),
    "text": ("embedding_out", "scores_out"),
    "decoder": ("logits",),
}

#: Kinds of graphs that run once for each chunk of categories.
_BY_CHUNK: Final = ("correlation", "sam", "image", "text", "decoder")

#: A sum that a graph gives for each group → what it is called once all chunks are added up.
SUMS: Final = {"enhanced_sum": "enhanced_mean", "kv_sum": "kv_mean", "k_sum": "k_mean"}


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of an image, for one chunk of categories or for all (``chunk`` is None).

    ``stage`` is the name of a graph, or "esc{i}_prompts": the generator, on the scores of all.
    """

    stage: str
    kind: str
    block: int | None = None
    chunk: int | None = None


def image_steps(blocks: int, chunks: int, *, decoded: bool = True) -> Iterator[Step]:
    """The steps of one image with so many ESC blocks and chunks of categories.

    Without the decoder the last are those that refine the scores.
    """
    yield Step("image_encoder", "image_encoder")
    for chunk in range(chunks):
        yield Step("correlation", "correlation", chunk=chunk)
    for block in range(blocks):
        yield Step(f"esc{block}_prompts", "prompts", block)
        for chunk in range(chunks):
            yield Step(f"esc{block}_sam", "sam", block, chunk)
        yield Step(f"esc{block}_fuse", "fuse", block)
        for kind in ("image", "text"):
            for chunk in range(chunks):
                yield Step(f"esc{block}_{kind}", kind, block, chunk)
    for chunk in range(chunks if decoded else 0):
        yield Step("decoder", "decoder", chunk=chunk)


def refined(output: str) -> str:
    """The name under which later steps read an output: "scores_out" takes the place of "scores"."""
    return output.removesuffix("_out")


def by_chunk(graph: str) -> bool:
    """Whether the graph of that name runs once for each chunk of categories."""
    return kind_of(graph) in _BY_CHUNK


def kind_of(graph: str) -> str:
    """The kind of the graph of that name: "sam" of "esc0_sam"."""
    return graph.partition("_")[2] if graph.startswith("esc") else graph
