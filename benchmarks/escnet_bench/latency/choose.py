"""What a run compares: implementations with their precisions, and allocators."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.manifest import Precision

from .plan import IMPLEMENTATIONS, PEER, Allocator, Variant
from .runs import missing_extra
from .subject import Subject

__all__ = [
    "allocators",
    "check_precision",
    "chosen_variants",
    "openvino_computes_bf16",
    "variants_of",
]

#: What is also timed in bf16 on a CPU if the bundle is bf16: what a user of PyTorch would pick.
_AT_BF16: Final = ("torch-plain", "torch", "torch-compile-static")


def check_precision(subject: Subject, asked: str | None) -> None:
    """Refuse a precision that is not the bundle's.

    Raises:
        InputError: names both precisions.
    """
    there = subject.bundle.manifest.precision.value
    if asked is not None and asked != there:
        raise InputError(
            f"--precision {asked}: the bundle is of {there}; leave --precision out, or export "
            f"another with escnet-export --precision {asked}"
        )


def allocators(asked: Sequence[Allocator] | None, *, gpu: bool) -> Sequence[Allocator]:
    """The allocators asked for; by default both on a CPU, and malloc as it is on a GPU."""
    return asked or (("default",) if gpu else get_args(Allocator))


def chosen_variants(
    subject: Subject, asked: Sequence[str] | None, peer: Path | None, *, gpu: bool
) -> tuple[tuple[Variant, ...], dict[Variant, str]]:
    """Variants to measure, the most important first, and those that cannot be, with the reason.

    Raises:
        BackendError: an implementation that was asked for by name cannot be measured.
    """
    chosen, missing = [], {}
    for name in IMPLEMENTATIONS:
        wanted = name in asked if asked is not None else name != PEER or peer is not None
        if not wanted:
            continue
        for variant in variants_of(name, subject.bundle.manifest.precision, gpu=gpu):
            reason = missing_extra(variant, gpu=gpu) or (subject.no_torch if variant.torch else "")
            if variant.peer and peer is None:
                reason = reason or "give its checkout: --cat-seg FOLDER"
            if not reason:
                chosen.append(variant)
            elif asked is not None:
                raise BackendError(f"{name} cannot be measured: {reason}")
            else:
                missing[variant] = reason
    return tuple(chosen), missing


def variants_of(name: str, precision: Precision, *, gpu: bool) -> list[Variant]:
    """An implementation in each precision that is timed beside a bundle of ``precision``."""
    if not name.startswith(("torch", "openvino")):
        return [Variant(implementation=name, precision=precision.value)]
    if name == "openvino":
        kind = "bf16" if precision is Precision.BF16 and openvino_computes_bf16() else "fp32"
        return [Variant(implementation=name, precision=kind)]
    if name == PEER:
        return [Variant(implementation=name, precision="fp32")]  # as its authors run it
    if not gpu:
        # Of the types that a CPU may be faster in, torch has bf16.
        own = {precision.value} if precision is Precision.BF16 and name in _AT_BF16 else set()
        return [Variant(implementation=name, precision=kind) for kind in sorted({"fp32"} | own)]
    half = precision.value if precision.value in ("fp32", "fp16", "bf16") else "fp16"
    kinds = {half, "fp32"} if name == "torch-plain" else {half}
    return [Variant(implementation=name, precision=kind) for kind in sorted(kinds)]


def openvino_computes_bf16() -> bool:
    """Whether OpenVINO is installed and the processor has bf16 matrix products."""
    if importlib.util.find_spec("openvino") is None:
        return False
    from escnet_runtime.backends.openvino import computes_bf16  # an extra

    return computes_bf16()
