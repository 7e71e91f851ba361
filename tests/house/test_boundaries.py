"""The rooms of the house: what may import what, and what an edge device gets."""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from escnet_runtime import Segmenter
from escnet_runtime.pictures import read_label_png
from tests.house.conftest import EdgeEnvironment
from tests.shared import ROOT
from tools.workspace import Distribution, distributions

WORKSPACE = {one.package: one for one in distributions(ROOT)}
TORCH_WORLD = {"open_clip", "segment_anything", "timm", "torch", "torchvision"}

# Which of our own packages each may import; the same table as under "Rooms" of the design.
ALLOWED = {
    "escnet_runtime": set[str](),
    "escnet_engines": {"escnet_runtime"},
    "escnet": {"escnet_runtime"},
    "escnet_export": {"escnet", "escnet_engines", "escnet_runtime"},
    "escnet_bench": {"escnet", "escnet_engines", "escnet_export", "escnet_runtime"},
}
WITHOUT_TORCH = ["escnet_runtime", "escnet_engines"]
# Libraries of extras an edge device may leave out; each is imported by one module of its own.
OPTIONAL_AT_THE_EDGE = [
    "av",
    "cuda",
    "onnx",
    "openvino",
    "polygraphy",
    "tensorrt",
    "tensorrt_rtx_bindings",
]
# Compilers that the development environment does not have; each has a module of its own too.
NOT_INSTALLED_HERE = ["tensorrt"]

# Imports a package's modules, but for those that lack one of the libraries named after it, and
# prints the top-level names of all that was loaded.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in sys.argv[2:]:
                raise
print(*sorted(name.partition(".")[0] for name in sys.modules))
"""

HIDE_TORCH = """
import sys
from importlib.abc import MetaPathFinder
class Hidden(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"{name} is hidden by this test", name=name)
sys.meta_path.insert(0, Hidden())
__import__(sys.argv[1])
"""

# Imports modules, then imports those of our packages once more as on Windows: under its name, and
# without what Python's standard library has on POSIX alone. Other libraries stay loaded.
IMPORT_AS_ON_WINDOWS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name in list(sys.modules):
    if name.startswith("escnet_"):
        del sys.modules[name]
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
sys.platform = "win32"
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

# Imports a module and says what ONNX Runtime finds in the environment when it is imported.
WATCH_ONNXRUNTIME = """
import os, sys
from importlib.abc import MetaPathFinder
class Watching(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watching())
__import__(sys.argv[1])
"""


def imports_of(source: str) -> set[str]:
    """Top-level names a module imports anywhere in it, relative imports left out."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                found |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
            case ast.Call(func=ast.Name("__import__") | ast.Attribute(attr="import_module")):
                found |= {
                    argument.value.partition(".")[0]
                    for argument in node.args[:1]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                }
    return found


def modules_of(one: Distribution) -> Iterator[tuple[Path, set[str]]]:
    """Each module of a distribution's package, with what it imports."""
    for path in sorted((one.folder / one.package).rglob("*.py")):
        yield path.relative_to(ROOT), imports_of(path.read_text(encoding="utf-8"))


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import numpy.linalg as l, os
from torch.nn import Linear
from . import sibling
def late():
    if True:
        import timm.models
    importlib.import_module("onnx.checker")
"""
    assert imports_of(source) == {"numpy", "os", "torch", "timm", "onnx"}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_rooms_below(package: str) -> None:
    forbidden = ({*ALLOWED, "tests", "tools"} - ALLOWED[package]) - {package}
    offenders = {
        f"{path}: {', '.join(names & forbidden)}"
        for path, names in modules_of(WORKSPACE[package])
        if names & forbidden
    }
    assert not offenders


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_no_source_of_the_device_side_names_torch(package: str) -> None:
    offenders = {
        f"{path}: {', '.join(names & TORCH_WORLD)}"
        for path, names in modules_of(WORKSPACE[package])
        if names & TORCH_WORLD
    }
    assert not offenders


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_importing_every_module_leaves_torch_unloaded(package: str) -> None:
    done = _python(IMPORT_EVERYTHING, package, *NOT_INSTALLED_HERE)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert package in loaded
    assert not loaded & {*TORCH_WORLD, "escnet", "escnet_export"}


def test_the_benchmark_command_imports_without_torch() -> None:
    """It installs on the device too: torch is only an extra of it."""
    done = _python(HIDE_TORCH, "escnet_bench.command", *TORCH_WORLD)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["escnet_runtime", "escnet_engines", "escnet_bench"])
def test_commands_of_a_device_import_what_windows_has(package: str) -> None:
    scripts = WORKSPACE[package].project["scripts"]
    done = _python(IMPORT_AS_ON_WINDOWS, *(each.partition(":")[0] for each in scripts.values()))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "wish"),
    [
        ("escnet_runtime.backends.onnxruntime", None),
        ("escnet_runtime.backends.onnxruntime", "0"),
        ("escnet_runtime.gpu.onnxruntime", None),
        ("escnet_runtime.layers_compare", None),
        pytest.param("escnet_export", None, marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_reports_nothing_unless_that_is_wished(
    module: str, wish: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if wish is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", wish)
    done = _python(WATCH_ONNXRUNTIME, module)
    # The last time that it was looked for is when it was imported; torch asks whether it is there.
    assert done.stdout.split()[-1:] == [wish or "1"], done.stderr


def test_hiding_torch_works() -> None:
    done = _python(HIDE_TORCH, "torch", *TORCH_WORLD)
    assert done.returncode == 1
    assert "torch is hidden by this test" in done.stderr


@pytest.mark.parametrize("package", ALLOWED)
def test_wheels_hold_their_package_and_nothing_else(package: str, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = set(wheel.namelist())
    info = f"{wheels[package].name.split('-py3')[0]}.dist-info"
    assert {name.partition("/")[0] for name in names} == {package, info}
    assert f"{info}/licenses/LICENSE" in names
    assert f"{package}/py.typed" in names
    assert not [name for name in names if "test" in Path(name).name or "/tests/" in name]
    folder = WORKSPACE[package].folder
    kinds = ("*.py", "*.c", "*.cu", "*.cuh")
    found = [path for kind in kinds for path in (folder / package).rglob(kind)]
    assert {str(path.relative_to(folder)) for path in found} <= names
    assert "escnet_runtime/kernels/ppg.cu" in names or package != "escnet_runtime"


def test_the_edge_environment_has_no_torch(edge_environment: EdgeEnvironment) -> None:
    program = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    heavy = [*TORCH_WORLD, "escnet", "escnet_export", "onnx"]
    done = edge_environment.run(["python", "-I", "-c", program, "numpy", "onnxruntime", *heavy])
    assert done.stdout.strip() == "['numpy', 'onnxruntime']"


def test_the_edge_environment_imports_its_own_runtime(edge_environment: EdgeEnvironment) -> None:
    program = "import escnet_runtime; print(escnet_runtime.__file__)"
    done = edge_environment.run(["python", "-I", "-c", program])
    assert Path(done.stdout.strip()).is_relative_to(edge_environment.folder)


def test_every_module_of_the_runtime_imports_at_the_edge(edge_environment: EdgeEnvironment) -> None:
    arguments = ["-c", IMPORT_EVERYTHING, "escnet_runtime", *OPTIONAL_AT_THE_EDGE]
    done = edge_environment.run(["python", "-I", *arguments])
    assert not set(done.stdout.split()) & TORCH_WORLD


def test_the_edge_environment_compiles_what_its_wheel_brings(
    edge_environment: EdgeEnvironment,
) -> None:
    if not any(shutil.which(name, path="/usr/bin:/bin") for name in ("cc", "gcc", "clang")):
        pytest.skip("needs a C compiler")
    program = "from escnet_runtime.native import native_status as s; print(*s())"
    done = edge_environment.run(["python", "-I", "-c", program])
    assert done.stdout.startswith("True compiled "), done.stdout


def test_the_edge_environment_segments_as_the_development_one_does(
    edge_environment: EdgeEnvironment, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Only the wheel of the runtime, outside the repository, without PyTorch: the same labels."""
    y, x = np.mgrid[:60, :80]
    picture = np.stack([3 * x, 4 * y, 255 * ((x // 20 + y // 15) % 2)], axis=-1).astype(np.uint8)
    photo, output = tmp_path / "photo.png", tmp_path / "output"
    Image.fromarray(picture).save(photo)
    words = ["--classes", "sky, tree, road, house, dog", "--output", str(output), "--no-cache"]
    done = edge_environment.run(["escnet-segment", tiny_bundle, photo, *words, "--json"])
    result = json.loads(done.stdout)
    assert result["categories"] == 5
    with Segmenter(tiny_bundle, cache=None) as segmenter:
        vocabulary = segmenter.vocabulary(["sky", "tree", "road", "house", "dog"])
        want = segmenter(picture, vocabulary).labels
    labels, names = read_label_png(Path(result["images"][0]["labels"]))
    assert names == list(vocabulary.names)
    np.testing.assert_array_equal(labels, want)

    checks = json.loads(edge_environment.run(["escnet-verify", tiny_bundle, "--json"]).stdout)
    assert checks["passed"], [check for check in checks["checks"] if not check["passed"]]
    program = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    missing = edge_environment.run(["python", "-I", "-c", program, *TORCH_WORLD])
    assert missing.stdout.strip() == "[]"


def _python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
