"""Every parameter of a run with its group and rate: ``groups.tsv`` in the run's folder."""

from collections.abc import Iterator, Sequence
from typing import Final

from torch import nn

from .task import ParameterGroup

__all__ = ["FROZEN", "parameter_list"]

FROZEN: Final = "frozen"
_HEAD: Final = ("group", "optimiser", "rate", "weight decay", "shape", "parameter")


def parameter_list(module: nn.Module, groups: Sequence[ParameterGroup]) -> str:
    """Lines of columns between tabs, a heading first; last what is frozen, at rate 0.

    Args:
        module: whose parameters they are.
        groups: what is trained.
    """
    lines = [_HEAD, *_trained(groups), *_frozen(module, groups)]
    return "".join("\t".join(line) + "\n" for line in lines)


def _trained(groups: Sequence[ParameterGroup]) -> Iterator[tuple[str, ...]]:
    for group in groups:
        numbers = f"{group.rate:g}", f"{group.weight_decay:g}"
        optimiser = "Muon" if group.muon else "AdamW"
        for name, parameter in group.parameters.items():
            yield group.name, optimiser, *numbers, _shape(parameter), name


def _frozen(module: nn.Module, groups: Sequence[ParameterGroup]) -> Iterator[tuple[str, ...]]:
    trained = {id(one): name for group in groups for name, one in group.parameters.items()}
    names = [(name, one) for name, one in module.named_parameters()]
    # What is trained may be named from within the module; so is then what is not.
    roots = {name.removesuffix(trained[id(one)]) for name, one in names if id(one) in trained}
    root = roots.pop() if len(roots) == 1 else ""
    for name, one in names:
        if id(one) not in trained:
            yield FROZEN, "-", "0", "0", _shape(one), name.removeprefix(root)


def _shape(parameter: nn.Parameter) -> str:
    return "×".join(map(str, parameter.shape)) or "1"
