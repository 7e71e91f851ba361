"""The result of the accuracy gate."""

from dataclasses import dataclass, field

from .parity import Outcome
from .plan import PrecisionPlan
from .report import ParityReport
from .workshop import Built

__all__ = ["Decision"]


@dataclass(slots=True, kw_only=True)
class Decision:
    """The result of the gate: the plan, its files, and their figures."""

    plan: PrecisionPlan
    built: dict[str, Built]
    report: ParityReport
    outcomes: list[Outcome] = field(default_factory=list)
