"""From groups of parameters to an optimiser: AdamW, and Muon where a group asks for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from escnet_runtime.errors import EscNetError

from .task import ParameterGroup

__all__ = ["optimiser_of", "ordered"]


def ordered(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """In the order of the optimiser's ``param_groups``: those of AdamW, then those of Muon."""
    return sorted(groups, key=lambda group: group.muon)


def optimiser_of(groups: Sequence[ParameterGroup]) -> Optimizer:
    """AdamW (arXiv 1711.05101), and torch's Muon for the groups that ask for it.

    Muon makes the momentum of a matrix orthogonal before it takes the step (Newton-Schulz, see
    ``torch.optim.Muon``), so it takes matrices only.

    Raises:
        EscNetError: a group asks for Muon, and this torch is older than 2.9, which brought it.
    """
    parts: list[Optimizer] = []
    plain = [_options(group) for group in groups if not group.muon]
    matrices = [_options(group) for group in groups if group.muon]
    if plain:
        parts.append(AdamW(plain))
    if matrices:
        parts.append(_muon(matrices))
    return parts[0] if len(parts) == 1 else _Together(parts)


def _muon(groups: list[dict[str, Any]]) -> Optimizer:
    # Imported here: only the foundations of tiny ask for it, and training a model does not need it.
    try:
        from torch.optim import Muon
    except ImportError:
        raise EscNetError(
            "Muon, which trains the CLIP of `tiny`, came with torch 2.9, and this is torch "
            f"{torch.__version__}: install a newer one"
        ) from None
    return Muon(groups)


def _options(group: ParameterGroup) -> dict[str, Any]:
    return {
        "params": list(group.parameters.values()),
        "lr": group.rate,
        "weight_decay": group.weight_decay,
    }


class _Together(Optimizer):
    """Several optimisers that step as one; its groups are theirs, the very same dictionaries."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Each takes its step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Theirs, in a list."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError if it is not of the same optimisers."""
        states = state_dict["parts"]
        if len(states) != len(self._parts):
            raise ValueError(f"got the states of {len(states)} optimisers")
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
        # Loading makes new dictionaries.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
