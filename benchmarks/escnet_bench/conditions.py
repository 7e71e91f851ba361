"""The conditions of a measurement, without which its numbers mean nothing.

Host names, user names and folders are not recorded, because results are published.
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
#: The kind of device that computes.
Device: TypeAlias = Literal["cpu", "gpu"]
_SECONDS: Final = 20.0  # time limit for a tool's answer


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleConditions:
    """The measured bundle; ``sha256`` is of its bundle.json, which has those of all other files."""

    name: str
    model: str
    precision: str
    trained: bool
    weights: str
    sha256: str

    @classmethod
    def of(cls, bundle: Bundle) -> "Self":
        """The identity of an opened bundle."""
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
    """The machine, its software and its load; None or empty where something is not known.

    Attributes:
        date: UTC, ISO 8601.
        method: how it was measured, in a sentence.
        cpu: the processor's model, preceded by that of the board if the system names one.
        cores: logical cores of the machine; ``usable_cores`` are those that this process may use,
            by affinity and by the CPU quota of its container.
        memory_bytes: memory of the machine; a container may be allowed less.
        gpus: name, memory and driver as nvidia-smi gives them; empty without nvidia-smi.
        packages: versions of the installed ones.
        variables: environment variables that change allocation, threads, or what runs in C.
        load_before, load_after: load average of the last 1, 5 and 15 minutes.
        clocks_before, clocks_after: clocks and throttling; None in files of older versions.
        commit: of the source tree this runs from; ``changed`` if tracked files differ from it.
        device: what computed the images; None in older files, and if no image was computed.
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
        """A copy that names a bundle, which was opened since."""
        return dataclasses.replace(self, bundle=BundleConditions.of(bundle))

    def finished(self) -> "Conditions":
        """A copy with load and clocks at the end of the measurement."""
        return dataclasses.replace(self, load_after=load_averages(), clocks_after=read_clocks())


def device_of(segmenter: Segmenter) -> Device:
    """The kind of device that a segmenter computes on."""
    return "cpu" if segmenter.device_pipeline is None else "gpu"


def board_model(root: Path = Path("/")) -> str | None:
    """The board's name in the device tree, such as "Raspberry Pi 5 Model B Rev 1.0".

    None without a device tree, as on most machines with an Intel or AMD processor.

    Args:
        root: the folder of ``proc``.
    """
    try:
        text = (root / "proc/device-tree/model").read_bytes()
    except OSError:
        return None
    return text.decode("utf-8", "replace").strip("\0 \n") or None


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's model, preceded by the board's, since boards with equal cores may differ.

    Args:
        root: the folder of ``proc``.
    """
    board, processor = board_model(root), processor_model(root / "proc/cpuinfo")
    return processor if board is None else f"{board}, {processor}"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows, or sysconf lacks these names
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
    if preloaded:  # such as another allocator; its folder stays private
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
    """The output of a tool; None if it is not installed, fails or hangs."""
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
