"""Floating-point operations of one image, in the plain form and as the exported graphs run it.

Counted by the formulas of ``torch.utils.flop_counter``: two for each multiply-add of a matrix
product or convolution; sums, norms, softmax and activations are not counted. The model and its
inputs lie on the meta device, so that 847 categories cost neither memory nor time.

Three things are left out of both forms: the text encoder (it runs once a vocabulary, not once an
image), the prompt generator (integer arithmetic), and whatever depends only on weights (SAM's
positional encoding, the decoder's composed kernels), because in an exported graph it is a constant.

The shipped form runs in chunks of categories and computes what all categories share once for each
chunk; it is counted as often.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from escnet.build import build_model
from escnet.config import EscNetConfig
from escnet.model import EscNet
from escnet_export.graphs import Graph, Port, model_graphs
from escnet_runtime.errors import InputError
from escnet_runtime.groups import GROUP, category_chunks, whole_groups

__all__ = ["METHOD", "Form", "GflopRow", "count_flops", "gflop_rows"]

METHOD: Final = (
    "2 operations for each multiply-add of matrix products and convolutions "
    "(torch.utils.flop_counter); without the text encoder, the prompt generator, and what depends "
    "on weights alone"
)

Form = Literal["plain", "shipped"]
#: Name, how often it runs, what runs, and its inputs.
_Stage: TypeAlias = tuple[str, int, Callable[..., Any], list[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GflopRow:
    """Operations of one image in units of 10⁹.

    ``stages`` are those of the graphs, ``esc{i}_vlf`` being ``esc{i}_image`` and ``esc{i}_text``
    together; ``chunk`` is None for the plain form, which has all categories in one batch;
    ``of_plain`` is the total as a fraction of the plain form's.
    """

    preset: str
    categories: int
    form: Form
    chunk: int | None
    gflop: float
    of_plain: float
    stages: Mapping[str, float]


def gflop_rows(
    config: EscNetConfig,
    categories: Sequence[int],
    *,
    chunk: int,
    step: Callable[[str], object] | None = None,
) -> list[GflopRow]:
    """Count both forms for each number of categories.

    Args:
        config: the model; its weights do not matter.
        categories: numbers of categories, at least 1.
        chunk: categories at a time in the shipped form, rounded up to whole groups.
        step: called with a few words before each number of categories.

    Raises:
        InputError: a number is below 1.
    """
    if chunk < 1 or any(n < 1 for n in categories):
        raise InputError(
            f"got categories {list(categories)} in chunks of {chunk}; expected at least 1"
        )
    with torch.device("meta"):
        model = build_model(config)
    rows = []
    for n in categories:
        if step:
            step(f"{n} categories")
        plain = _add_up(_plain(model, n))
        shipped = _add_up(_shipped(model, category_chunks(n, chunk, GROUP)))
        forms: list[tuple[Form, int | None, dict[str, int]]] = [
            ("plain", None, plain),
            ("shipped", whole_groups(chunk, GROUP), shipped),
        ]
        for form, size, stages in forms:
            total = sum(stages.values())
            row = GflopRow(
                preset=config.name,
                categories=n,
                form=form,
                chunk=size,
                gflop=total / 1e9,
                of_plain=total / sum(plain.values()),
                stages={name: flops / 1e9 for name, flops in stages.items()},
            )
            rows.append(row)
    return rows


def count_flops(function: Callable[..., object], inputs: Sequence[Tensor]) -> int:
    """Operations of ``function(*inputs)`` whose operands depend on ``inputs``."""
    mode = _InputFlops(inputs)
    with torch.no_grad(), mode:
        function(*inputs)
    return mode.flops


class _InputFlops(TorchDispatchMode):
    """Counts the operations that depend on given tensors; the rest are constants of a graph."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        # Kept alive, or an id could come back for another tensor. Meta tensors hold no memory.
        self._dependent = {id(tensor): tensor for tensor in inputs}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count it if an operand depends on the inputs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = _tensors([*args, *kwargs.values()])
        if any(id(operand) in self._dependent for operand in operands):
            # FlopCounterMode has the same formulas, but counts constants too.
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                self.flops += formula(*args, **kwargs, out_val=result)
            self._dependent.update((id(tensor), tensor) for tensor in _tensors([result]))
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among ``values`` and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _add_up(stages: Iterable[_Stage]) -> dict[str, int]:
    """Operations by stage; stages that share a name are added up."""
    found: dict[str, int] = {}
    for name, times, function, inputs in stages:
        found[name] = found.get(name, 0) + times * count_flops(function, inputs)
    return found


def _plain(model: EscNet, n: int) -> Iterator[_Stage]:
    """The stages of ``EscNet.forward_plain``: nothing is shared between categories."""
    graphs = {graph.name: graph for graph in model_graphs(model)}
    yield _stage(graphs["image_encoder"], n)
    yield _stage(graphs["correlation"], n)
    for index, block in enumerate(model.esc_blocks):
        sam = graphs[f"esc{index}_sam"]
        yield sam.name, 1, block.sam.forward_plain, _inputs(sam.inputs, n)
        yield _stage(graphs[f"esc{index}_fuse"], n)
        yield f"esc{index}_vlf", 1, block.refine_plain, _refine_inputs(graphs, index, n)
    decoder = graphs["decoder"]
    yield decoder.name, 1, partial(model.decoder, plain=True), _inputs(decoder.inputs, n)


def _refine_inputs(graphs: Mapping[str, Graph], index: int, n: int) -> list[Tensor]:
    """Inputs of :meth:`EscBlock.refine_plain`: of both graphs, by name."""
    image, text = graphs[f"esc{index}_image"], graphs[f"esc{index}_text"]
    ports = {port.name: port for port in chain(image.inputs, text.inputs)}
    return _inputs([ports[name] for name in ("embedding", "guidance", "text", "scores")], n)


def _shipped(model: EscNet, chunks: Sequence[slice]) -> Iterator[_Stage]:
    """Every graph, as often as the runtime runs it for one image."""
    sizes = Counter(where.stop - where.start for where in chunks)
    for graph in model_graphs(model):
        if graph.name == "text_encoder":
            continue
        by_category = any("n" in port.shape for port in graph.inputs)
        for n, times in sizes.items() if by_category else [(1, 1)]:
            yield _stage(graph, n, times)


def _stage(graph: Graph, n: int, times: int = 1) -> _Stage:
    name = graph.name
    if name.startswith("esc"):
        name = name.replace("_image", "_vlf").replace("_text", "_vlf")
    return name, times, graph.module, _inputs(graph.inputs, n)


def _inputs(ports: Sequence[Port], n: int) -> list[Tensor]:
    """Meta tensors of one image and ``n`` categories."""
    sizes = {"b": 1, "n": n, "g": whole_groups(n, GROUP) // GROUP}
    return [
        torch.empty(
            [axis if isinstance(axis, int) else sizes[axis] for axis in port.shape],
            dtype=port.dtype(torch.float32),
            device="meta",
        )
        for port in ports
    ]
