"""Sums up the checks of a bundle in words, for people who know nothing of graphs."""

from dataclasses import dataclass, field
from typing import Literal

from .engines import EngineFolder
from .manifest import Manifest
from .measured_chunks import ChunkState
from .nvidia import find_gpu

__all__ = [
    "BackendState",
    "Check",
    "Findings",
    "Verdict",
    "rebuild_advice",
    "unused_chunks",
    "verdict_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: see the table in docs/verify.md.
        passed: whether it is as it should be.
        detail: what was found, a sentence for people.
        reason: for the verdict, if this check decides it: what is wrong, a clause.
        advice: likewise what to do about it, a sentence.
        note: it passed, and there is something to know all the same.
    """

    name: str
    passed: bool
    detail: str
    reason: str = ""
    advice: str = ""
    note: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """A backend and what came of it here: "passed", "failed", or "not run" and what it lacks."""

    name: str
    state: Literal["passed", "failed", "not run"]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of all checks, for people who know nothing of graphs.

    Attributes:
        fine: whether the bundle may be used on this device.
        sentence: the same in words.
        why: what that rests on.
        advice: what to do.
        notes: what else is to be known, a sentence each.
    """

    fine: bool
    sentence: str
    why: str
    advice: str
    notes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Findings:
    """Findings of the checks besides passing or failing.

    Attributes:
        backend: the one that was asked for, or "auto".
        manifest: None if the description cannot be used.
        files: how many the description names.
        backends, engines, chunks: what came of each that is there.
    """

    backend: str
    manifest: Manifest | None = None
    files: int = 0
    backends: list[BackendState] = field(default_factory=list)
    engines: list[EngineFolder] = field(default_factory=list)
    chunks: list[ChunkState] = field(default_factory=list)


def verdict_of(checks: tuple[Check, ...], found: Findings) -> Verdict:
    """Sum up the checks in words."""
    bad = [check for check in checks if not check.passed]
    notes = _notes(found)
    ran = [state.name for state in found.backends if state.state == "passed"]
    if bad:
        first = bad[0]
        return Verdict(
            fine=False,
            sentence=f"This bundle is not fine on this device: {first.reason or first.detail}.",
            why=f"{len(bad)} of {len(checks)} checks failed, {first.name} first: {first.detail}",
            advice=(first.advice or "Do not rely on it on this device.") + _good_ones(bad, ran),
            notes=notes,
        )
    return Verdict(
        fine=True,
        sentence="This bundle is fine on this device.",
        why=f"All {found.files} of its files are as they were written, and on "
        f"{' and on '.join(ran)} it computes what the float32 model computed.",
        advice="Nothing to do: use it.",
        notes=notes,
    )


def _good_ones(bad: list[Check], ran: list[str]) -> str:
    """What may be used all the same, where everything that failed is of other backends."""
    if not ran or not all(": " in check.name for check in bad):
        return ""
    return f" With {' and '.join(ran)} it is fine."


def _notes(found: Findings) -> tuple[str, ...]:
    notes = []
    if found.manifest is not None:
        if not found.manifest.model.trained:
            notes.append("Its weights are untrained: its masks mean nothing.")
        if not found.manifest.parity.passed:
            notes.append("It missed its accuracy budget when it was exported: see parity.html.")
    for folder in found.engines:
        if folder.state == "misfit":
            reasons = "; ".join(folder.reasons)
            notes.append(f"{folder.folder} does not run here: {reasons}. {rebuild_advice(folder)}")
    notes += [unused_chunks(state) for state in found.chunks if state.state == "misfit"]
    return tuple(notes)


def rebuild_advice(folder: EngineFolder) -> str:
    """What to do about engines that do not run here, in a sentence."""
    if folder.command is None:
        return f"Remove {folder.folder} from the bundle; escnet-build makes engines anew."
    here = find_gpu() is not None or "--target" in folder.command
    how = "Rebuild them" if here else "On a device with an NVIDIA GPU, rebuild them"
    return f"{how}: {folder.command}"


def unused_chunks(state: ChunkState) -> str:
    """Why a record of measured chunks is not used here, and what to do, in two sentences."""
    reasons = "; ".join(state.reasons)
    return f"{state.file} is not used here: {reasons}. Measure anew: {state.command}"
