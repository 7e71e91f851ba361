"""The parts of result files that the report reads, as they stand in JSON.

Keys that are not named here are allowed and ignored: files may say more. A key whose type has None
may be missing. Every number is finite and at least 0, a share at most 1; what quotients are made of
or a logarithmic scale shows is more than 0.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from escnet_runtime.errors import BundleFormatError, InputError
from escnet_runtime.strict_json import typed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "BundleOf",
    "ClocksOf",
    "ConditionsOf",
    "EvalDocument",
    "FootprintRow",
    "GflopRow",
    "GoldenOf",
    "GpuClocksOf",
    "GpuLatencyRow",
    "GpuMemoryRow",
    "GpuPlan",
    "GpuStagesRow",
    "LatencyRow",
    "LeftOutRow",
    "ParityRowOf",
    "PrecisionRowOf",
    "RatioRow",
    "StageOf",
    "taken",
]

_T = TypeVar("_T", bound="DataclassInstance")
_MOST: Final = 1e15
#: Between 0 and 1, not percent.
_SHARES: Final = frozenset(
    {
        "agreement",
        "miou",
        "pixel_accuracy",
        "pixel_agreement",
        "prompt_share",
        "reference_miou",
        "torch_miou",
    }
)
#: Name of a field → the least that it can be, where that is not 0.
_LEAST: Final[dict[str, float]] = {
    "categories": 1,
    "celsius": -273,
    "image_seconds": 1e-9,
    "p50_ms": 1e-9,
    "peak_memory_bytes": 1,
    "ratio": 1e-9,
}


@dataclass(frozen=True)
class _Checked:
    """Refuses numbers that nothing measured can be."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = _LEAST.get(field.name, 0)
            most = 1 if field.name in _SHARES else _MOST
            for number in value.values() if isinstance(value, Mapping) else (value,):
                if isinstance(number, int | float) and not least <= number <= most:
                    raise InputError(
                        f"{field.name} is {number:.6g}, expected {least:g} to {most:g}"
                        if abs(number) < _MOST**2
                        else f"{field.name} is no number that can be measured"
                    )


@dataclass(frozen=True)
class BundleOf:
    """``conditions.bundle``"""

    model: str
    precision: str
    sha256: str
    trained: bool | None
    weights: str | None


@dataclass(frozen=True)
class ConditionsOf(_Checked):
    """``conditions``"""

    date: str
    method: str | None
    system: str | None
    cpu: str | None
    cores: int | None
    usable_cores: int | None
    memory_bytes: int | None
    gpus: tuple[str, ...] | None
    python: str | None
    packages: dict[str, str] | None
    variables: dict[str, str] | None
    load_before: tuple[float, ...] | None
    load_after: tuple[float, ...] | None
    commit: str | None
    changed: bool | None
    device: str | None
    threads: dict[str, int] | None
    energy: str | None


@dataclass(frozen=True)
class ClocksOf(_Checked):
    """``conditions.clocks_before`` and ``clocks_after``"""

    cpu_mhz: tuple[float, float] | None
    cpu_max_mhz: float | None
    governor: str | None
    cpu_throttled: int | None


@dataclass(frozen=True)
class GpuClocksOf(_Checked):
    """A GPU of ``conditions.clocks_before`` and ``clocks_after``."""

    name: str
    sm_mhz: int | None
    celsius: int | None
    watts: float | None
    throttle_reasons: tuple[str, ...] | None


@dataclass(frozen=True)
class LatencyRow(_Checked):
    """A row of "latency"."""

    model: str
    implementation: str
    precision: str
    allocator: str | None
    categories: int
    chunk: int | None
    repeats: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    first_ms: float | None
    stages: dict[str, float] | None
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    gflop: float | None
    floor_ms: float | None
    floor_share: float | None
    energy_mj: float | None
    agreement: float | None


@dataclass(frozen=True)
class RatioRow(_Checked):
    """An entry of ``ratios`` of "latency"."""

    model: str
    implementation: str
    precision: str
    categories: int
    allocator: str | None
    ours: str
    ratio: float


@dataclass(frozen=True)
class LeftOutRow(_Checked):
    """An entry of ``left_out`` of "latency"."""

    model: str | None
    implementation: str
    precision: str | None
    categories: int | None
    allocator: str | None
    reason: str


@dataclass(frozen=True)
class FootprintRow(_Checked):
    """A row of "footprint"."""

    categories: int
    chunk: int | None
    backend: str
    image: str | None
    image_seconds: float
    image_seconds_each: tuple[float, ...] | None
    prompt_share: float | None
    peak_memory_bytes: int | None
    filled_cache: dict[str, float] | None
    stages: dict[str, float] | None


@dataclass(frozen=True)
class GflopRow(_Checked):
    """A row of "gflop"."""

    preset: str
    categories: int
    form: str
    gflop: float
    of_plain: float


@dataclass(frozen=True)
class PrecisionRowOf(_Checked):
    """A row of "precision"."""

    precision: str
    miou: float | None
    torch_miou: float | None
    pixel_agreement: float
    prompt_flips: int
    prompts: int
    worst_stage: str | None
    worst_stage_l2: float | None
    image_seconds: float | None
    untimed: str | None
    images: int
    categories: int


@dataclass(frozen=True)
class StageOf:
    """A stage of a row of "parity": not finite is null."""

    relative_l2: float | None
    cosine: float | None


@dataclass(frozen=True)
class GoldenOf(_Checked):
    """``golden`` of a row of "parity"."""

    pixel_agreement: float | None
    prompt_flips: int
    prompts: int
    failure: str | None


@dataclass(frozen=True)
class ParityRowOf(_Checked):
    """A row of "parity"."""

    model: str
    implementation: str
    precision: str
    dataset: str
    images: int
    categories: int
    reference: str | None
    miou: float | None
    reference_miou: float | None
    pixel_accuracy: float | None
    pixel_agreement: float | None
    prompt_flips: tuple[int, ...] | None
    prompts: tuple[int, ...] | None


@dataclass(frozen=True)
class EvalDocument(_Checked):
    """What ``escnet-eval`` writes."""

    model: str
    kind: str
    precision: str
    backend: str
    dataset: str | None
    images: int
    categories: int
    miou: float | None
    pixel_accuracy: float | None
    window: str | None
    correlation: bool | None
    shortlist: int | str | None


@dataclass(frozen=True)
class GpuPlan(_Checked):
    """``plan`` of a "gpu-check"."""

    backend: str


@dataclass(frozen=True)
class GpuLatencyRow(_Checked):
    """A row of "gpu-check latency"."""

    model: str
    precision: str
    categories: int
    implementation: str
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    repeats: int | None


@dataclass(frozen=True)
class GpuStagesRow(_Checked):
    """A row of "gpu-check stages"."""

    model: str
    precision: str
    categories: int
    stages: dict[str, float]


@dataclass(frozen=True)
class GpuMemoryRow(_Checked):
    """A row of "gpu-check memory"."""

    model: str
    precision: str
    categories: int
    measured_bytes: int


def taken(value: object, kind: type[_T], where: str) -> _T:
    """Read the keys of ``kind`` from parsed JSON; others are ignored.

    Args:
        value: parsed JSON.
        kind: one of the dataclasses here.
        where: the place, for messages: the file and what in it.

    Raises:
        InputError: with what was got and expected.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: got {type(value).__name__}, expected an object")
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        optional = types.NoneType in typing.get_args(hints[field.name])
        if field.name in value or optional:
            given[field.name] = value.get(field.name)
    try:
        return typed(given, kind)
    except BundleFormatError as error:
        raise InputError(f"{where}: {str(error).removeprefix('$').lstrip(':. ')}") from error
