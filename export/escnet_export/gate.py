"""The accuracy gate: finds where a precision hurts, and raises those blocks until the budget holds.

1. Blocks whose values overflow their type on the images are raised at once: on a device they would
   become infinities, whatever this machine computes.
2. If the budget does not hold, the damage of each block is measured alone: the block runs at its
   precision and all others in float32 torch. Blocks are raised one by one, the most damaging first,
   until the budget holds. Of the image encoder, by far the largest, as few parts as suffice are
   raised.
3. Raised blocks that turn out not to be needed are lowered again.
4. A block that was raised from eight bits to float16 is a new file, which is checked as in 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from escnet.model import EscNet
from escnet_runtime.backends import Backend
from escnet_runtime.manifest import Precision
from escnet_runtime.preprocess import Preprocessing
from escnet_runtime.vocabulary import assemble

from .alone import OneTypedGraph
from .decision import Decision
from .kept import Kept
from .parity import Sample, compare_pipelines, measure_parity, stage_error
from .plan import ENCODER, QUANTISED, PrecisionPlan, encoder_parts, graph_of
from .precision import typed_graphs
from .raised import raised_blocks
from .ranges import Trap, find_traps, worst_first
from .report import Budget, ParityReport, StageError
from .texts import TEXT_ENCODER, Texts, inputs_of
from .workshop import Built, Step, Workshop, open_backend

__all__ = ["AccuracyGate"]

#: Raising some parts of the image encoder is enough if it removes at least this share of the damage
#: that raising the whole encoder removes.
_RECOVERED: Final = 0.9
#: Rounds of building files and searching them for overflows, at most.
_ROUNDS: Final = 4
#: A stage whose relative L2 is below this gains nothing from being raised.
_EXACT: Final = 1e-6


class AccuracyGate:
    """Fits a plan to a budget.

    Args:
        model: in float32.
        workshop: makes the files.
        samples: images through float32 torch; all figures are measured on these.
        texts: of the samples' categories.
        spec: how images are prepared.
        trained: whether the weights are trained; selects the gate, see :class:`Budget`.
        budget: what may be lost.
        step: called with the name of each step as it begins.
    """

    def __init__(
        self,
        model: EscNet,
        workshop: Workshop,
        samples: Sequence[Sample],
        texts: Texts,
        *,
        spec: Preprocessing,
        trained: bool,
        budget: Budget,
        step: Step = lambda _: None,
    ) -> None:
        self._model, self._workshop, self._samples = model, workshop, samples
        self._texts, self._spec, self._step = texts, spec, step
        self._trained, self._budget = trained, budget
        self._errors: dict[object, StageError] = {}
        self._found: dict[Path, list[Trap]] = {}

    def fit(self, plan: PrecisionPlan, *, raise_blocks: bool = True) -> Decision:
        """Raise as few blocks of ``plan`` as meet the budget; if none do, return the best plan.

        With ``raise_blocks`` False, ``plan`` is measured as it is.
        """
        decision = start = self._measure(plan)
        traps = self._traps(start.built)
        reasons, damages = dict[str, str](), dict[str, float | None]()
        for _ in range(_ROUNDS if raise_blocks else 0):
            decision = self._in_range(decision, reasons, damages)
            if not decision.report.passed:
                decision = self._raise(decision, reasons, damages)
            # Compared by block: the same tensor has another name in each file of a block.
            known = {(trap.block, trap.overflows) for trap in traps}
            left = self._traps(decision.built)
            traps += [trap for trap in left if (trap.block, trap.overflows) not in known]
            if not any(trap.overflows for trap in left):
                break
        report = decision.report
        report.traps = traps
        report.kept_higher = self._kept(start, decision, reasons, damages)
        report.kept_in_fp32 = [
            kept.block for kept in report.kept_higher if kept.precision is Precision.FP32
        ]
        report.judge()
        return decision

    def _kept(
        self,
        start: Decision,
        decision: Decision,
        reasons: Mapping[str, str],
        damages: Mapping[str, float | None],
    ) -> list[Kept]:
        return raised_blocks(
            start,
            decision,
            model=self._model,
            samples=self._samples,
            texts=self._texts,
            reasons=reasons,
            damages=damages,
            step=self._step,
        )

    # Measuring

    def _measure(self, plan: PrecisionPlan) -> Decision:
        built = self._workshop.build(plan)
        backend = open_backend(built)
        try:
            stages = {}
            for name, one in built.items():
                if one.path not in self._errors:
                    self._errors[one.path] = self._stage(backend, one)
                stages[name] = self._errors[one.path]
            report, outcomes = measure_parity(
                self._model,
                backend,
                self._samples,
                precision=plan.base,
                spec=self._spec,
                trained=self._trained,
                budget=self._budget,
                stages=stages,
                text=self._embeddings(backend),
                progress=lambda: self._step("parity"),
            )
        finally:
            backend.close()
        return Decision(plan=plan, built=built, report=report, outcomes=outcomes)

    def _stage(self, backend: Backend, built: Built) -> StageError:
        if built.graph.name != TEXT_ENCODER:
            return stage_error(backend, built.graph, self._samples)
        error = StageError()
        error.add(self._encoded(backend), self._texts.embeddings)
        return error

    def _encoded(self, backend: Backend) -> npt.NDArray[np.float32]:
        """Embeddings [t, D] of the texts, which the typed encoder gives."""
        found = backend.run(TEXT_ENCODER, {"tokens": self._texts.tokens})["embeddings"]
        return np.asarray(backend.to_host(found), np.float32)

    def _embeddings(self, backend: Backend) -> npt.NDArray[np.float32] | None:
        """The categories' embeddings from the typed text encoder; None if they are not finite."""
        found = self._encoded(backend)
        backend.release(TEXT_ENCODER)
        if not np.isfinite(found).all():
            return None  # that stage fails by itself; the others are measured with torch's
        return assemble(self._texts.plan, found).embeddings

    def _traps(self, built: Mapping[str, Built]) -> list[Trap]:
        """The traps of all float16 graphs on all images."""
        traps: list[Trap] = []
        for name, one in built.items():
            if one.arithmetic is Precision.FP16:
                if one.path not in self._found:
                    self._step(f"ranges {name}")
                    inputs = inputs_of(name, self._samples, self._texts)
                    self._found[one.path] = find_traps(name, one.path, inputs)
                traps += self._found[one.path]
        return traps

    # Raising

    def _in_range(
        self, decision: Decision, reasons: dict[str, str], damages: dict[str, float | None]
    ) -> Decision:
        """``decision`` with every block that overflows raised to float32."""
        plan = decision.plan
        for trap in worst_first([trap for trap in self._traps(decision.built) if trap.overflows]):
            reasons[trap.block], damages[trap.block] = trap.why(), None
            plan = plan.with_raised(trap.block, Precision.FP32)
        return decision if plan == decision.plan else self._measure(plan)

    def _raise(
        self, decision: Decision, reasons: dict[str, str], damages: dict[str, float | None]
    ) -> Decision:
        """Raise the most damaging blocks until the budget holds, then lower those not needed."""
        order = self._ranking(decision)
        raised: list[str] = []
        while not decision.report.passed and order:
            block, damage = order.pop(0)
            better, blocks = self._raised(decision, block)
            if better.report.damage() >= decision.report.damage() and np.isfinite(damage):
                continue  # no gain
            for name in blocks:
                reasons[name] = self._why(decision, name, damage)
                damages[name] = damage
            decision, raised = better, [*raised, *blocks]
            # A block may need more than one step: int8 → fp16 → fp32.
            if decision.plan.higher(block) is not None and not decision.report.passed:
                left = self._ranking(decision, [block])
                order = sorted([*order, *left], key=lambda entry: -entry[1])
        return self._lowered(decision, list(dict.fromkeys(raised))[:-1], reasons, damages)

    def _lowered(
        self,
        decision: Decision,
        raised: Sequence[str],
        reasons: dict[str, str],
        damages: dict[str, float | None],
    ) -> Decision:
        """``decision`` with blocks of ``raised`` lowered, last first, that the budget can spare."""
        for block in reversed(raised):
            if not decision.report.passed:
                break
            if block in decision.plan.raised:
                fewer = self._measure(decision.plan.without(block))
                if fewer.report.passed:
                    decision = fewer
                    del reasons[block], damages[block]
        return decision

    def _ranking(
        self, decision: Decision, blocks: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """Graphs that do damage and can be raised, each with its damage, the worst first."""
        found = []
        for name in blocks or list(decision.built):
            error = decision.report.stages[name].relative_l2
            if decision.plan.higher(name) is None or error <= _EXACT:
                continue
            found.append((name, self._damage(decision, name)))
        floor = 1.0 if self._only_stages else 0.0
        # Of stages with equal damage, the one with the larger error comes first.
        stages = decision.report.stages
        found.sort(key=lambda entry: (-entry[1], -stages[entry[0]].relative_l2))
        return [entry for entry in found if entry[1] > floor]

    @property
    def _only_stages(self) -> bool:
        """Whether the budget is about the error of each stage alone."""
        labelled = all(sample.labels is not None for sample in self._samples)
        budget = self._budget
        others = budget.prompt_flips is not None or "pixels" in budget.asked
        return not (self._trained or labelled or others)

    def _damage(self, decision: Decision, name: str) -> float:
        """The damage of one graph, in budgets, while all others run in float32 torch."""
        error = decision.report.stages[name]
        if not np.isfinite(error.relative_l2):
            return np.inf
        if self._only_stages:
            return error.relative_l2 / self._budget.stage_l2 if self._budget.stage_l2 else np.inf
        self._step(f"alone {name}")
        typed = open_backend({name: decision.built[name]})
        try:
            text = self._embeddings(typed) if name == TEXT_ENCODER else None
            alone = OneTypedGraph(self._model, typed, decision.built[name], self._samples)
            found = compare_pipelines(self._model, alone, self._samples, spec=self._spec, text=text)
        finally:
            typed.close()
        return found.report(
            self._samples, trained=self._trained, budget=self._budget, stages={name: error}
        ).damage()

    def _raised(self, decision: Decision, block: str) -> tuple[Decision, list[str]]:
        """``decision`` with ``block``, or parts of it, raised; and the names of what was raised."""
        whole = self._measure(decision.plan.with_raised(block))
        if block != ENCODER:
            return whole, [block]
        found = self._parts(decision, whole)
        return found or (whole, [block])

    def _parts(self, decision: Decision, whole: Decision) -> tuple[Decision, list[str]] | None:
        """Raise as few parts of the image encoder as suffice; None if half of them do not."""
        plan = decision.plan
        parts = [
            part
            for part in encoder_parts(self._model.config)
            if plan.precision(part) is plan.precision(ENCODER)
        ]
        errors = {part: self._part_error(plan, part) for part in parts}
        order = sorted(parts, key=lambda part: -errors[part])
        count = 1
        while count <= max(1, len(parts) // 2):
            made = plan
            for part in order[:count]:
                made = made.with_raised(part)
            found = self._measure(made)
            if _recovers(decision.report, found.report, whole.report):
                return found, order[:count]
            count *= 2
        return None

    def _part_error(self, plan: PrecisionPlan, part: str) -> float:
        """Relative L2 of the image encoder with all parts but one raised above ``plan``."""
        for other in encoder_parts(self._model.config):
            if other != part and plan.higher(other) is not None:
                plan = plan.with_raised(other)
        if plan.precision(ENCODER) in QUANTISED:
            built = self._workshop.build(plan, [ENCODER])
            backend = open_backend(built)
            try:
                return self._stage(backend, built[ENCODER]).relative_l2
            finally:
                backend.close()
        self._step(f"alone {part}")
        graph = typed_graphs(self._model, plan, [ENCODER])[0]
        error = StageError()
        for sample in self._samples:
            call = next(call for call in sample.calls if call.graph == ENCODER)
            with torch.inference_mode():
                outputs = graph.module(torch.tensor(call.inputs["image"]))
            for port, tensor in zip(graph.outputs, outputs, strict=True):
                error.add(tensor.float().numpy(), call.outputs[port.name])
        return error.relative_l2

    # Reporting

    def _why(self, decision: Decision, block: str, damage: float) -> str:
        graph = graph_of(block)
        precision = decision.plan.precision(block)
        error = decision.report.stages[graph].relative_l2
        if not np.isfinite(error):
            return f"{graph} gives numbers that are not finite at {precision}"
        part = "" if graph == block else f", most of it by {block}"
        costs = f"costs {damage:.2g} times the budget"
        if not np.isfinite(damage):
            costs = "has a loss of which the budget allows none"
        return f"alone at {precision}, {graph} {costs} (relative L2 {error:.1e}){part}"


def _recovers(before: ParityReport, found: ParityReport, whole: ParityReport) -> bool:
    """Whether raising some parts of the image encoder is as good as raising the whole encoder."""
    if found.passed:
        return True
    if not np.isfinite(before.stages[ENCODER].relative_l2):
        return bool(np.isfinite(found.stages[ENCODER].relative_l2))
    if not np.isfinite(before.damage()):  # another graph's fault
        return found.stages[ENCODER].relative_l2 <= found.budget.stage_l2
    gained, possible = before.damage() - found.damage(), before.damage() - whole.damage()
    return gained > 0 and gained >= _RECOVERED * possible
