"""What the accuracy gate comes to."""

from dataclasses import dataclass, field

from .parity import Outcome
from .plan import PrecisionPlan
from .report import ParityReport
from .workshop import Built

__all__ = ["Decision"]


@dataclass(slots=True, kw_only=True)
class Decision:
    """What the gate came to: the plan, its files, and what they measure."""

    plan: PrecisionPlan
    built: dict[str, Built]
    report: ParityReport
    outcomes: list[Outcome] = field(default_factory=list)
