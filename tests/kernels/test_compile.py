"""NVIDIA's compilers take the shipped sources, for every GPU, without spilling registers."""

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from escnet_runtime.errors import InputError
from escnet_runtime.kernels import KERNELS, kernel_source

OLDEST, NEWEST = 75, 121


def nvcc() -> str:
    """The CUDA compiler of this machine; skips where there is none."""
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("needs nvcc to compile for every GPU")
    return found


def architectures(compiler: str) -> list[int]:
    """Those the installed nvcc knows, of the range that is promised."""
    listing = subprocess.run(
        [compiler, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    known = {int(number) for number in re.findall(r"compute_(\d+)$", listing, re.MULTILINE)}
    return sorted(one for one in known if OLDEST <= one <= NEWEST)


@pytest.mark.slow
def test_nvcc_compiles_for_every_gpu_without_spills(tmp_path: Path) -> None:
    """One call for all of them, and PTX of the oldest for GPUs to come."""
    compiler = nvcc()
    targets = architectures(compiler)
    assert {75, 80, 86, 89, 90} <= set(targets)
    generate = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in targets]
    generate.append(f"-gencode=arch=compute_{OLDEST},code=compute_{OLDEST}")
    source = tmp_path / "kernels.cu"
    folder = files("escnet_runtime.kernels")
    names = dict.fromkeys(name for part in KERNELS.values() for name in part)
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in names]
    source.write_text("\n".join(texts), encoding="utf-8")
    options = ["-std=c++17", "-Werror=all-warnings", "-Xptxas=-v", "-fatbin"]
    output = ["-o", str(tmp_path / "kernels.fatbin")]
    done = subprocess.run(
        [compiler, *options, *generate, str(source), *output],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", done.stderr)
    assert sorted(compiled) == sorted((k, str(t)) for k in KERNELS for t in targets)
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
    )
    assert len(frames) == len(compiled)
    assert set(frames) == {("0", "0", "0")}, done.stderr
    assert (tmp_path / "kernels.fatbin").stat().st_size > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_sources_include_nothing(kernel: str) -> None:
    assert "#include" not in kernel_source(kernel)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="got kernel 'nms'; there are escnet_accumulate"):
        kernel_source("nms")
