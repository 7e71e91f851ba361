"""The figures of a bundle's parity, and the budget that they are held against."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from escnet_runtime.manifest import Precision
from escnet_runtime.sketch import relative_l2

from .check import STAGE_TOLERANCE
from .kept import Kept
from .plan import graph_of
from .ranges import Trap

__all__ = ["Budget", "Gate", "ParityReport", "StageError"]

#: What decides whether a bundle is good: equal labels, or the error of each stage.
Gate: TypeAlias = Literal["pixels", "stages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a bundle may lose against float32 torch.

    Attributes:
        pixel_agreement: smallest share of pixels with an equal label. The gate for trained weights.
        stage_l2: largest relative L2 of a stage. The gate for untrained weights, whose labels are
            mostly near-ties and mean nothing.
        miou_loss: largest loss of mIoU, a difference of two fractions; counts in addition to the
            gate if the images have labels.
        prompt_flips: largest share of prompts that may flip; counts in addition to the gate, if
            given.
        asked: gates that count for any weights, because the user gave a number for them.
    """

    pixel_agreement: float
    stage_l2: float
    miou_loss: float = 0.01
    prompt_flips: float | None = None
    asked: tuple[Gate, ...] = ()

    @classmethod
    def default(cls, precision: Precision, image_encoder: Precision | None = None) -> "Budget":
        """The budget of a precision; of the coarser one if the image encoder has another.

        Equal pixels and relative L2 of stages: 99.9 % and 1e-4 at fp32; 99.5 % and 5e-3 at fp16;
        98 % and 5e-2 at bf16; 97 % and 0.15 at int8 and fp8.
        """
        precision = max(precision, image_encoder or precision, key=STAGE_TOLERANCE.__getitem__)
        agreement = {
            Precision.FP32: 0.999,
            Precision.FP16: 0.995,
            Precision.BF16: 0.98,
            Precision.INT8: 0.97,
            Precision.FP8: 0.97,
        }
        return cls(pixel_agreement=agreement[precision], stage_l2=STAGE_TOLERANCE[precision])


@dataclass(slots=True)
class StageError:
    """The worst relative L2 and the worst cosine of a stage's outputs over all images."""

    relative_l2: float = 0.0
    cosine: float = 1.0

    def add(self, got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]) -> None:
        """Take one output into account."""
        self.relative_l2 = max(self.relative_l2, relative_l2(got, want))
        self.cosine = min(self.cosine, _cosine(got, want))


def _cosine(got: npt.NDArray[np.generic], want: npt.NDArray[np.generic]) -> float:
    """Cosine of the angle between two tensors; -1 if it is not defined."""
    x, y = np.asarray(got, np.float64).ravel(), np.asarray(want, np.float64).ravel()
    if not (x.any() or y.any()):
        return 1.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosine = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    return cosine if np.isfinite(cosine) else -1.0


@dataclass(slots=True, kw_only=True)
class ParityReport:
    """The figures of a bundle, as ``parity.json`` holds them.

    Attributes:
        gate: what decides: equal pixels or errors of stages, see :class:`Budget`.
        passed: whether the budget holds; set by :meth:`judge`.
        images, categories, pixels: how many of each the figures were measured on.
        pixel_agreement: share of pixels that get torch's label.
        near_ties: share of pixels whose two best categories are so close that rounding decides.
        agreement_without_ties: as ``pixel_agreement``, without near-ties.
        prompt_flips, prompts: number of prompts whose point or validity differs from torch's, and
            number of all prompts.
        blocks: the same two numbers for each ESC block, as "flips" and "prompts".
        stages: graph → its error when given torch's inputs.
        budget: what the figures are compared with.
        miou, reference_miou: of the typed graphs and of float32 torch; None without labels.
        kept_in_fp32: blocks that the accuracy gate raised to float32.
        kept_higher: all blocks that it raised, with reason and cost.
        traps: tensors whose values are too large for float16, or nearly so.
    """

    gate: Gate
    passed: bool
    images: int
    categories: int
    pixels: int
    pixel_agreement: float
    near_ties: float
    agreement_without_ties: float
    prompt_flips: int
    prompts: int
    blocks: list[dict[str, int]]
    stages: dict[str, StageError]
    budget: Budget
    miou: float | None = None
    reference_miou: float | None = None
    kept_in_fp32: list[str] = field(default_factory=list)
    kept_higher: list[Kept] = field(default_factory=list)
    traps: list[Trap] = field(default_factory=list)

    def judge(self) -> None:
        """Compare the figures with the budget and set ``passed``."""
        self.passed = not self.missed()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @property
    def worst_stage(self) -> str:
        """The stage with the largest relative L2."""
        return max(self.stages, key=lambda name: self.stages[name].relative_l2)

    @property
    def miou_loss(self) -> float | None:
        """mIoU of float32 torch minus that of the typed graphs; None without labels."""
        if self.miou is None or self.reference_miou is None:
            return None
        return self.reference_miou - self.miou

    @property
    def flipped(self) -> float:
        """The share of prompts that flipped."""
        return self.prompt_flips / self.prompts if self.prompts else 0.0

    def damage(self) -> float:
        """The loss in multiples of the budget, a sum over its parts; 1 is a part's limit."""
        if not np.isfinite(self.stages[self.worst_stage].relative_l2):
            return np.inf
        budget, total = self.budget, 0.0
        if "pixels" in self._gates:
            total += _share(1 - self.pixel_agreement, 1 - budget.pixel_agreement)
        if "stages" in self._gates:
            total += _share(self.stages[self.worst_stage].relative_l2, budget.stage_l2)
        if budget.prompt_flips is not None:
            total += _share(self.flipped, budget.prompt_flips)
        if self.miou_loss is not None:
            total += _share(max(self.miou_loss, 0.0), budget.miou_loss)
        return total

    def missed(self) -> list[str]:
        """A clause for each part of the budget that does not hold."""
        worst = self.stages[self.worst_stage].relative_l2
        if not np.isfinite(worst):  # labels can agree by chance where a graph gives NaN
            return [
                f"graph {self.worst_stage!r} gives numbers that are not finite where float32 "
                "torch's are"
            ]
        overflows = [f"{block} overflows: {why}" for block, why in self._overflows().items()]
        return overflows + [clause for holds, clause in self._parts() if not holds]

    def _parts(self) -> list[tuple[bool, str]]:
        """Whether each part of the budget that counts here holds, with a clause; the gate first."""
        budget = self.budget
        parts: dict[Gate, tuple[bool, str]] = {
            "pixels": (self.pixel_agreement >= budget.pixel_agreement, self._pixels()),
            "stages": (
                self.stages[self.worst_stage].relative_l2 <= budget.stage_l2,
                self._stages(),
            ),
        }
        found = [parts.pop(self.gate)]
        found += [part for gate, part in parts.items() if gate in self._gates]
        if budget.prompt_flips is not None:
            found.append(
                (
                    self.flipped <= budget.prompt_flips,
                    f"{self.flipped:.2%} of prompts flipped, budget at most "
                    f"{budget.prompt_flips:.2%}",
                )
            )
        if self.miou_loss is not None:
            found.append(
                (
                    self.miou_loss <= budget.miou_loss,
                    f"mIoU {self.miou:.2%} where float32 torch has {self.reference_miou:.2%}, "
                    f"budget at most {budget.miou_loss:.2%} less",
                )
            )
        return found

    @property
    def _gates(self) -> set[Gate]:
        return {self.gate, *self.budget.asked}

    def _overflows(self) -> dict[str, str]:
        """Blocks in which a device would compute infinities, with a reason each.

        This machine may not show it.
        """
        # Only float32 helps: the step above int8 may be float16, which overflows as well.
        raised = {kept.block for kept in self.kept_higher if kept.precision is Precision.FP32}
        return {
            trap.block: trap.why()
            for trap in reversed(self.traps)
            if trap.overflows and not {trap.block, graph_of(trap.block)} & raised
        }

    def reason(self) -> str:
        """Why the budget does not hold or, if it does, each of its parts; one sentence."""
        return "; ".join(self.missed() or [clause for _, clause in self._parts()])

    def _pixels(self) -> str:
        return (
            f"pixel agreement {self.pixel_agreement:.4%} with float32 torch, budget at least "
            f"{self.budget.pixel_agreement:.4%}"
        )

    def _stages(self) -> str:
        why = "weights are untrained, so stages are the gate: " if self.gate == "stages" else ""
        return (
            f"{why}worst relative L2 of a stage "
            f"{self.stages[self.worst_stage].relative_l2:.1e} ({self.worst_stage}), budget at most "
            f"{self.budget.stage_l2:.0e}"
        )


def _share(lost: float, allowed: float) -> float:
    return lost / allowed if allowed > 0 else (np.inf if lost > 0 else 0.0)
