"""Under which conditions something was measured: a number without them means nothing.

Neither host nor user names nor folders are recorded: results are published.
"""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.lanes import usable_cores
from escnet_runtime.processor import load_averages, processor_model
from escnet_runtime.segmenter import Segmenter

from .clocks import Clocks, read_clocks

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = ["BundleConditions", "Conditions", "Device", "board_model", "cpu_model", "device_of"]

_PACKAGES: Final = (
    "cuda-bindings",
    "escnet",
    "escnet-bench",
    "escnet-runtime",
    "numpy",
    "nvidia-ml-py",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "open_clip_torch",
    "openvino",
    "pillow",
    "scikit-learn",
    "segment-anything",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "tokenizers",
    "torch",
)
#: Variables that change allocation, the number of threads, or what runs in C.
_VARIABLES: Final = (
    "CUDA_VISIBLE_DEVICES",
    "ESCNET_NATIVE",
    "GLIBC_TUNABLES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONMALLOC",
)
#: What an image is computed on.
Device: TypeAlias = Literal["cpu", "gpu"]
_SECONDS: Final = 20.0  # a tool that takes longer to answer is not asked


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleConditions:
    """The bundle that was measured; ``sha256`` is that of its bundle.json, which has all others."""

    name: str
    model: str
    precision: str
    trained: bool
    weights: str
    sha256: str

    @classmethod
    def of(cls, bundle: Bundle) -> "Self":
        """What identifies an opened bundle."""
        manifest = bundle.manifest
        return cls(
            name=bundle.root.name,
            model=manifest.model.name,
            precision=manifest.precision.value,
            trained=manifest.model.trained,
            weights=manifest.model.weights,
            sha256=sha256_file(bundle.root / "bundle.json"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """The machine, its software and its load; None or empty where something cannot be known.

    Attributes:
        date: UTC, ISO 8601.
        method: how it was measured, in a sentence.
        cpu: the processor's model, behind that of the board where the system names one.
        cores: logical cores of the machine; ``usable_cores`` are those this process may use, or
            whose time its container is given.
        memory_bytes: of the machine; a container may be allowed less.
        gpus: name, memory and driver as nvidia-smi gives them; empty where it is not.
        packages: versions of those installed.
        variables: environment variables that change allocation, threads, or what runs in C.
        load_before, load_after: load average of the last 1, 5 and 15 minutes.
        clocks_before, clocks_after: clocks and throttling; None in files older than their reading.
        commit: of the source tree this runs from; ``changed`` if tracked files differ from it.
        device: what computed; None in older files, and where nothing was computed for.
    """

    date: str
    method: str
    system: str
    cpu: str | None
    cores: int | None
    usable_cores: int | None
    memory_bytes: int | None
    gpus: tuple[str, ...]
    python: str
    packages: dict[str, str]
    variables: dict[str, str]
    load_before: tuple[float, ...] | None
    load_after: tuple[float, ...] | None = None
    commit: str | None
    changed: bool | None
    bundle: BundleConditions | None = None
    clocks_before: Clocks | None = None
    clocks_after: Clocks | None = None
    device: Device | None = None

    @classmethod
    def now(
        cls, method: str, bundle: Bundle | None = None, *, device: Device | None = None
    ) -> "Self":
        """Conditions at the beginning of a measurement."""
        commit, changed = _commit()
        return cls(
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            method=method,
            system=platform.platform(),
            cpu=cpu_model(),
            cores=os.cpu_count(),
            usable_cores=usable_cores(),
            memory_bytes=_memory(),
            gpus=_gpus(),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            packages=_versions(),
            variables=_variables(),
            load_before=load_averages(),
            commit=commit,
            changed=changed,
            bundle=None if bundle is None else BundleConditions.of(bundle),
            clocks_before=read_clocks(),
            device=device,
        )

    def of(self, bundle: Bundle) -> "Conditions":
        """The same of a bundle that was opened since."""
        return dataclasses.replace(self, bundle=BundleConditions.of(bundle))

    def finished(self) -> "Conditions":
        """The same with load and clocks at the end."""
        return dataclasses.replace(self, load_after=load_averages(), clocks_after=read_clocks())


def device_of(segmenter: Segmenter) -> Device:
    """What a segmenter computes on."""
    return "cpu" if segmenter.device_pipeline is None else "gpu"


def board_model(root: Path = Path("/")) -> str | None:
    """What a device tree calls the board, such as "Raspberry Pi 5 Model B Rev 1.0".

    None where there is no device tree, as on most machines with a processor of Intel or AMD.

    Args:
        root: where ``proc`` lies.
    """
    try:
        text = (root / "proc/device-tree/model").read_bytes()
    except OSError:
        return None
    return text.decode("utf-8", "replace").strip("\0 \n") or None


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's model, behind that of the board: boards with equal cores are not the same.

    Args:
        root: where ``proc`` lies.
    """
    board, processor = board_model(root), processor_model(root / "proc/cpuinfo")
    return processor if board is None else f"{board}, {processor}"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows, or a system without these names
        return None


def _gpus() -> tuple[str, ...]:
    columns = "--query-gpu=name,memory.total,driver_version"
    output = _output(["nvidia-smi", columns, "--format=csv,noheader"])
    return tuple(line.strip() for line in (output or "").splitlines() if line.strip())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _variables() -> dict[str, str]:
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in _VARIABLES or name.startswith(("MALLOC_", "ORT_"))
    }
    preloaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    if preloaded:  # such as another allocator; its folder is nobody's business
        found["LD_PRELOAD"] = " ".join(Path(name).name for name in preloaded)
    return found


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the tree this file is tracked in; a package installed elsewhere has none."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    if _output([*git, "ls-files", "--error-unmatch", here.name]) is None:
        return None, None
    commit = _output([*git, "rev-parse", "HEAD"])
    status = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    return (commit or "").strip() or None, None if status is None else bool(status.strip())


def _output(command: Sequence[str]) -> str | None:
    """What a tool prints; None if it is not here, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
