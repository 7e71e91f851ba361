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

    Asked once a process: the source tree may change while it trains, the code that runs does not.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
