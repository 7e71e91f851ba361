"""What the library is compiled from and for, and the key that says so; cheap at every start."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Final

from ..processor import processor_features

__all__ = ["FLAGS", "SOURCES", "library_key", "targets"]

SOURCES: Final = tuple(Path(__file__).with_name(name) for name in ("prompts.c", "upsample.c"))

FLAGS: Final = (
    "-O3",
    "-std=c11",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
"""Never fast-math, and no fused products but those that are written: they would change labels."""

# What an x86-64 level demands beyond the one before, in the words of /proc/cpuinfo.
_V3: Final = frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"])
_V4: Final = _V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
# Compilers that do not know the levels know these.
_PLAIN_V3: Final = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe", "-mf16c")
_WIDE: Final = ("-march=x86-64-v4", "-mprefer-vector-width=512")


def library_key() -> str:
    """64 hexadecimal digits: another key, another library.

    The compiler is no part of it, so nothing looks for one where a library is kept; ``$CC`` is, as
    who sets it wants that compiler's.
    """
    parts = [
        *(path.read_text(encoding="utf-8") for path in SOURCES),
        *FLAGS,
        *(" ".join(target) for target in targets()),
        *(
            sys.platform,
            _machine(),
            str(sys.maxsize),
            getattr(sys.implementation, "_multiarch", ""),
        ),
        os.environ.get("CC", ""),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def targets() -> tuple[tuple[str, ...], ...]:
    """Flags for this processor, the widest first; a compiler takes the first ones it knows.

    The last is empty: what every processor of this architecture runs.
    """
    features = processor_features() if _machine() in {"x86_64", "amd64"} else frozenset()
    found: list[tuple[str, ...]] = []
    if features >= _V4:
        found.append(_WIDE)
    if features >= _V3:
        found += [("-march=x86-64-v3",), _PLAIN_V3]
    return (*found, ())


def _machine() -> str:
    return os.uname().machine.lower() if hasattr(os, "uname") else ""
