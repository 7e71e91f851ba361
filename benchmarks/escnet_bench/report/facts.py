"""The facts taken from result files of all kinds: machine, timings, accuracies, what is missing."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Accuracy",
    "LeftOut",
    "Machine",
    "Operations",
    "Ratio",
    "Result",
    "Timing",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine on a day; results that share both are drawn in one panel.

    ``cores`` are those that could be used; ``gpus`` are names alone, without memory and driver.
    """

    cpu: str | None
    cores: int | None
    gpus: tuple[str, ...]
    day: str

    @property
    def name(self) -> str:
        """The GPUs, or the processor and its cores."""
        if self.gpus:
            each = Counter(self.gpus).items()
            return " and ".join(gpu if count == 1 else f"{count} × {gpu}" for gpu, count in each)
        cores = "" if self.cores is None else f", {self.cores} core{'s' * (self.cores != 1)}"
        return (self.cpu or "unknown processor") + cores

    @property
    def label(self) -> str:
        """The name with the day."""
        return f"{self.name} · {self.day}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One implementation at one number of categories; None is what was not measured.

    Attributes:
        machine, file: where it was measured, and the file it is from.
        bundle: sha256 of the bundle.json of what was timed.
        prompt_share: of the time, the prompt generator's.
        first_mask_seconds: from the start of a process to its first mask, embeddings cached.
        stages: milliseconds by kind.
        agreement: share of labels that are those of the implementation compared with.
    """

    machine: Machine
    file: str
    model: str
    implementation: str
    precision: str
    categories: int
    allocator: str | None = None
    bundle: str | None = None
    prompt_share: float | None = None
    first_mask_seconds: float | None = None
    chunk: int | None = None
    repeats: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    first_ms: float | None = None
    stages: Mapping[str, float] | None = None
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    gflop: float | None = None
    floor_ms: float | None = None
    floor_share: float | None = None
    energy_mj: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times as long as ``ours`` an implementation took, median over rounds."""

    machine: Machine
    file: str
    model: str
    implementation: str
    precision: str
    categories: int
    allocator: str | None
    ours: str
    ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Accuracy of an implementation and its agreement with float32 PyTorch; None: not measured.

    ``milliseconds`` an image if the same file timed it; ``worst_stage`` and ``worst_stage_l2`` are
    the graph farthest from PyTorch; ``stages`` has relative L2 and cosine of all.
    ``note`` qualifies the figures.
    """

    machine: Machine
    file: str
    model: str
    implementation: str
    precision: str
    dataset: str
    images: int
    categories: int
    bundle: str | None = None
    miou: float | None = None
    reference_miou: float | None = None
    pixel_accuracy: float | None = None
    pixel_agreement: float | None = None
    prompt_flips: tuple[int, ...] | None = None
    prompts: int | None = None
    worst_stage: str | None = None
    worst_stage_l2: float | None = None
    stages: Mapping[str, tuple[float | None, float | None]] | None = None
    milliseconds: float | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """GFLOP of one image in one form, and as a share of the plain one."""

    file: str
    model: str
    categories: int
    form: str
    gflop: float
    of_plain: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """What was not measured, and why."""

    machine: Machine
    file: str
    what: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The facts of one file; ``unused`` is the reason if nothing of it is shown.

    ``remarks`` are what a reader has to know, such as that a run did not finish; ``notes`` are
    those in the file itself.
    """

    file: str
    benchmark: str
    machine: Machine
    conditions: Mapping[str, Any]
    unused: str | None = None
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = field(default=())
    ratios: tuple[Ratio, ...] = field(default=())
    accuracies: tuple[Accuracy, ...] = field(default=())
    operations: tuple[Operations, ...] = field(default=())
    left_out: tuple[LeftOut, ...] = field(default=())
