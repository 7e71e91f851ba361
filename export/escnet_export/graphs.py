"""The graphs a model is split into; their names, inputs and outputs are part of the bundle format.

Every graph is a method of the model itself, so nothing is written twice. Tensors that the runtime
computes with (scores, prompts, weights, sums, logits, text embeddings) are float32 or int32 at
every precision; those that only pass from graph to graph have the graphs' own type.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet_runtime.errors import InputError
from escnet_runtime.groups import GROUP

__all__ = ["Graph", "GraphModule", "Port", "model_graphs"]

Axis = int | str
Kind = Literal["float32", "float16", "bfloat16", "int32", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a graph. A string in ``shape`` names a dynamic axis.

    The kind "graph" stands for the type that the graph computes in; the ports of a typed graph name
    that type.

    Inputs and outputs of a graph share one namespace, so an output that refines an input has the
    input's name with ``_out`` appended.
    """

    name: str
    kind: Kind
    shape: tuple[Axis, ...]

    def dtype(self, graph_dtype: torch.dtype) -> torch.dtype:
        """The torch type at a graph precision."""
        fixed = {
            "float32": torch.float32,
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
            "int32": torch.int32,
        }
        return fixed.get(self.kind, graph_dtype)


class GraphModule(nn.Module):
    """A module whose forward is a method of ``owner``, held as a submodule for its weights.

    ``inputs`` and ``outputs`` are the types that the graph's ports are cast to, None for no cast:
    a port may be narrower than the type that the graph computes in.
    """

    def __init__(
        self,
        owner: nn.Module,
        method: Callable[..., Tensor | tuple[Tensor, ...]],
        inputs: Sequence[torch.dtype | None] | None = None,
        outputs: Sequence[torch.dtype | None] | None = None,
    ) -> None:
        super().__init__()
        self.owner = owner
        self._method = method
        self._inputs, self._outputs = inputs, outputs

    def cast(
        self,
        inputs: Sequence[torch.dtype | None] | None,
        outputs: Sequence[torch.dtype | None] | None,
    ) -> "GraphModule":
        """The same module with other casts."""
        return GraphModule(self.owner, self._method, inputs, outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of the graph's ports."""
        result = self._method(*_cast(inputs, self._inputs))
        results = (result,) if isinstance(result, Tensor) else tuple(result)
        return _cast(results, self._outputs)


def _cast(
    tensors: tuple[Tensor, ...], dtypes: Sequence[torch.dtype | None] | None
) -> tuple[Tensor, ...]:
    if dtypes is None:
        return tensors
    return tuple(
        tensor if dtype is None else tensor.to(dtype)
        for tensor, dtype in zip(tensors, dtypes, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One graph: its ports and the module that computes it.

    ``kind`` is the name without the block's number: graphs of a kind differ only in their weights.
    """

    name: str
    module: GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def kind(self) -> str:
        """``esc0_sam`` and ``esc3_sam`` are both of the kind ``esc_sam``."""
        return re.sub(r"^esc\d+_", "esc_", self.name)


def model_graphs(model: EscNet) -> list[Graph]:
    """All graphs of ``model`` in the order they run.

    Raises:
        InputError: the bundle format does not cover this variant; the message names the field.
    """
    _require_contract(model.config)
    first = [_image_encoder(model), _text_encoder(model), _correlation(model)]
    blocks = [graph for index in range(len(model.blocks)) for graph in _block(model, index)]
    return [*first, *blocks, _decoder(model)]


def _require_contract(config: EscNetConfig) -> None:
    """Refuse variants of the paper's ablations that need other graphs or ports."""
    for field, got, expected, good in (
        ("blocks", config.blocks, "at least 1", config.blocks >= 1),
        ("sam.in_blocks", config.sam.in_blocks, "True", config.sam.in_blocks),
        (
            "sam.prompts",
            repr(config.sam.prompts),
            "'points+masks'",
            config.sam.prompts == "points+masks",
        ),
    ):
        if not good:
            raise InputError(
                f"configuration {config.name!r}: {field} is {got}, expected {expected}: this "
                "variant is for comparison and runs in PyTorch alone, where escnet-train validates "
                "it (data.validation): the bundle format, by which escnet-export and escnet-eval "
                "run a model, has no graphs for it"
            )


def _float(name: str, *shape: Axis) -> Port:
    return Port(name=name, kind="float32", shape=shape)


def _int(name: str, *shape: Axis) -> Port:
    return Port(name=name, kind="int32", shape=shape)


def _own(name: str, *shape: Axis) -> Port:
    return Port(name=name, kind="graph", shape=shape)


def _out(port: Port) -> Port:
    return replace(port, name=f"{port.name}_out")


def _features(model: EscNet, batch: Axis) -> tuple[Port, Port, Port, Port]:
    config, grid = model.config, model.config.grid
    skip0, skip1 = config.decoder.skip_channels
    return (
        _float("features", batch, config.clip.embed_dim, grid, grid),
        _own("block_features", batch, config.sam.embed_dim, grid, grid),
        _own("skip0", batch, skip0, 2 * grid, 2 * grid),
        _own("skip1", batch, skip1, 4 * grid, 4 * grid),
    )


def _image_encoder(model: EscNet) -> Graph:
    size = model.config.clip.image_size
    return Graph(
        name="image_encoder",
        module=GraphModule(model, model.encode_image),
        inputs=(_float("image", "b", 3, size, size),),
        outputs=_features(model, "b"),
    )


def _text_encoder(model: EscNet) -> Graph:
    return Graph(
        name="text_encoder",
        module=GraphModule(model, model.encode_text),
        inputs=(_int("tokens", "t", "l"),),
        outputs=(_float("embeddings", "t", model.config.clip.embed_dim),),
    )


def _text(model: EscNet) -> Port:
    return _float("text", "n", model.config.clip.embed_dim)


def _scores(model: EscNet) -> Port:
    return _float("scores", "n", model.config.grid, model.config.grid)


def _embedding(model: EscNet) -> Port:
    grid = model.config.grid
    return _own("embedding", "n", grid, grid, model.config.fusion.hidden_dim)


def _correlation(model: EscNet) -> Graph:
    return Graph(
        name="correlation",
        module=GraphModule(model, model.correlate),
        inputs=(_features(model, 1)[0], _text(model)),
        outputs=(_scores(model), _embedding(model)),
    )


def _block(model: EscNet, index: int) -> list[Graph]:
    block, config, grid = model.esc_blocks[index], model.config, model.config.grid
    regions, heads = config.ppg.regions, config.fusion.heads
    width = config.fusion.hidden_dim // heads
    maps, weight = ("n", grid, grid), _float("weight", "g", GROUP)
    features = _features(model, 1)[1]
    guidance = _own("guidance", 1, config.fusion.hidden_dim, grid, grid)
    kv_shape, k_shape = (grid * grid, heads, width, width), (grid * grid, heads, width)
    sam = Graph(
        name=f"esc{index}_sam",
        module=GraphModule(block.sam, block.sam.forward),
        inputs=(
            features,
            _float("points", "n", regions, 2),
            _int("point_labels", "n", regions),
            _int("regions", *maps),
            _float("probabilities", *maps),
            weight,
        ),
        outputs=(_float("enhanced_sum", "g", *features.shape[1:]),),
    )
    fuse = Graph(
        name=f"esc{index}_fuse",
        module=GraphModule(block, block.fuse),
        inputs=(features, _float("enhanced_mean", *features.shape)),
        outputs=(_out(features), guidance),
    )
    image = Graph(
        name=f"esc{index}_image",
        module=GraphModule(block, block.refine_image),
        inputs=(_embedding(model), guidance, _text(model), weight),
        outputs=(
            _out(_embedding(model)),
            _float("kv_sum", "g", *kv_shape),
            _float("k_sum", "g", *k_shape),
        ),
    )
    text = Graph(
        name=f"esc{index}_text",
        module=GraphModule(block, block.refine_text),
        inputs=(
            _embedding(model),
            _text(model),
            _scores(model),
            _float("kv_mean", *kv_shape),
            _float("k_mean", *k_shape),
        ),
        outputs=(_out(_embedding(model)), _out(_scores(model))),
    )
    return [sam, fuse, image, text]


def _decoder(model: EscNet) -> Graph:
    cells = model.config.logits
    return Graph(
        name="decoder",
        module=GraphModule(model, model.decode),
        inputs=(_embedding(model), *_features(model, 1)[2:]),
        outputs=(_float("logits", "n", cells, cells),),
    )
