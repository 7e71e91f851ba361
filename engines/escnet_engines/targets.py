"""Which GPUs to compile for."""

import re
from collections.abc import Iterable
from typing import Final

from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.manifest import Precision

from .library import Library

__all__ = ["choose_targets", "require_arithmetic"]

#: The oldest GPUs that compute in a precision. TensorRT-RTX 1.7.1 refuses older ones too, but late:
#: when it comes to the first graph of that precision.
_LEAST: Final = {Precision.BF16: 80, Precision.FP8: 89}


def choose_targets(library: Library, wanted: str, here: tuple[str, ...]) -> tuple[str, ...]:
    """Compute capabilities to compile for, without repeats, the oldest first.

    Args:
        library: the compiler.
        wanted: "auto" for the GPU in this machine, or a list such as "sm_86,sm_89".
        here: the compute capability of the GPU in this machine; empty without one.

    Raises:
        InputError: the list is malformed, or the library does not compile for one of its GPUs.
        BackendError: there is no GPU, and one is needed.
    """
    names = list(here) if wanted == "auto" else [name.strip() for name in wanted.split(",")]
    for name in names:
        if not re.fullmatch(r"sm_\d{2,3}", name):
            raise InputError(f"--target has {name!r}; expected auto, or a list such as sm_86,sm_89")
    known = library.targets()
    if not library.compiles_ahead:
        _require_here(library, names, here)
    elif not names:
        raise BackendError(
            "no NVIDIA GPU is visible; name the GPUs to compile for, such as --target sm_86,sm_89 "
            f"({library.backend} {library.version} compiles for {', '.join(known)})"
        )
    else:
        strange = [name for name in names if name not in known]
        if strange:
            raise InputError(
                f"{library.backend} {library.version} does not compile these graphs for "
                f"{', '.join(strange)}; it does for {', '.join(known)}. For other GPUs, such as "
                "those of a Jetson or a data center, use --backend tensorrt on the machine that "
                "has the GPU"
            )
    return tuple(sorted(set(names), key=_number))


def require_arithmetic(targets: Iterable[str], precisions: Iterable[Precision]) -> None:
    """Refuse GPUs that do not compute in a bundle's precisions.

    Raises:
        InputError: a GPU does not; names the precision and the oldest GPU that does.
    """
    for precision in dict.fromkeys(precisions):
        least = _LEAST.get(precision, 0)
        older = [target for target in targets if _number(target) < least]
        if older:
            raise InputError(
                f"{', '.join(older)} cannot compute in {precision}, which needs sm_{least} or "
                "newer. Name other GPUs, or export the bundle for these with --precision fp16 or "
                "int8"
            )


def _number(target: str) -> int:
    return int(target.removeprefix("sm_"))


def _require_here(library: Library, names: list[str], here: tuple[str, ...]) -> None:
    advice = (
        "run escnet-build there (a Jetson's engines are built on the Jetson), or, for the GPUs of "
        "GeForce and RTX, here with --backend tensorrt-rtx --target"
    )
    if not here:
        raise BackendError(
            f"{library.backend} compiles only for the GPU it runs on, and no NVIDIA GPU is "
            f"visible; {advice}"
        )
    if set(names) != set(here):
        raise InputError(
            f"{library.backend} compiles only for the GPU in this machine, {', '.join(here)}, not "
            f"for {', '.join(names)}; {advice}"
        )
