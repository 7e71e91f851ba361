"""Which GPUs to compile for."""

import re

from escnet_runtime.errors import BackendError, InputError

from .library import Library

__all__ = ["choose_targets"]


def choose_targets(library: Library, wanted: str, here: tuple[str, ...]) -> tuple[str, ...]:
    """Compute capabilities to compile for, each once, the oldest first.

    Args:
        library: the compiler.
        wanted: "auto" for the GPU that is here, or a list such as "sm_86,sm_89".
        here: the compute capability of the GPU that is here; empty without one.

    Raises:
        InputError: the list is malformed, or the library does not compile for one of them.
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
            "no NVIDIA GPU is visible; name the GPUs to compile for, say --target sm_86,sm_89 "
            f"({library.backend} {library.version} knows {', '.join(known)})"
        )
    else:
        strange = [name for name in names if name not in known]
        if strange:
            raise InputError(
                f"{library.backend} {library.version} does not compile for {', '.join(strange)}; "
                f"it knows {', '.join(known)}"
            )
    return tuple(sorted(set(names), key=lambda name: int(name.removeprefix("sm_"))))


def _require_here(library: Library, names: list[str], here: tuple[str, ...]) -> None:
    advice = "compile on that GPU, or with --backend tensorrt-rtx"
    if not here:
        raise BackendError(
            f"{library.backend} compiles on the GPU that it compiles for, and no NVIDIA GPU is "
            f"visible; {advice} and --target"
        )
    if set(names) != set(here):
        raise InputError(
            f"{library.backend} compiles for the GPU that is here, {', '.join(here)}, and not for "
            f"{', '.join(names)}; {advice}"
        )
