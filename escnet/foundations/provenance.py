"""What ran, where: nothing that names a machine or a person."""

import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

__all__ = ["provenance"]


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, whether it was changed, torch, and the kind of processor; null: not to be found.

    The commit is that of the tree this file is tracked in; a package installed elsewhere has none,
    whatever repository that place belongs to. Asked once a process: the source tree may change
    while it trains, the code that runs does not.
    """
    here = Path(__file__).resolve()
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None
    changed = None
    if tracked:
        changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git(here.parent, "rev-parse", "HEAD") if tracked else None,
        "changed": None if changed is None else bool(changed),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None if it fails or is not here."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
