"""What the training loop asks of whatever is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["ParameterGroup", "Samples", "Task"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterGroup:
    """Parameters that share a learning rate. Those in no group are frozen.

    Attributes:
        name: for people, such as "attention of CLIP".
        parameters: by their names in the module.
        rate: learning rate after the warm-up.
        weight_decay: decoupled, as AdamW's.
        muon: whether Muon moves them, not AdamW; for matrices alone.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    rate: float
    weight_decay: float
    muon: bool = False


class Samples(Protocol):
    """An endless list: sample ``index`` depends on the index alone, so a run resumes anywhere."""

    def __getitem__(self, index: int) -> Any: ...


class Task(Protocol):
    """A module, its data and its figures."""

    @property
    def name(self) -> str:
        """For progress and logs."""

    @property
    def module(self) -> nn.Module:
        """Its ``forward`` takes a batch, and gives scalar tensors: "loss" and what else to log.

        It draws no random numbers (no dropout): a resumed run would draw others. And every
        parameter of :attr:`groups` gets a gradient each time, or several processes cannot agree.
        """

    @property
    def groups(self) -> Sequence[ParameterGroup]:
        """What is trained, and how fast."""

    @property
    def samples(self) -> Samples:
        """The data. Each index is asked for once a run, by one process."""

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """A list of samples → a batch of tensors (in dictionaries, lists or tuples)."""

    @property
    def score(self) -> str | None:
        """The figure of :meth:`validate` that is better the larger it is; None: there is none."""

    def validate(self, check: Callable[[], None], /) -> Mapping[str, float]:
        """Figures of the module as it is; asked of one process, outside of autograd.

        ``check`` is called before each image, or piece of work of about that size. It raises where
        the run was asked to stop; let that pass.
        """

    def save(self, path: Path, *, step: int) -> None:
        """Write the module for use, as safetensors."""


#: Losses of one forward pass, by name.
Losses = Mapping[str, Tensor]
