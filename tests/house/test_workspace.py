"""The five distributions fit together, and their files say nothing they should not."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.house.test_boundaries import WORKSPACE, modules_of
from tests.shared import ROOT
from tools.environment import NOT_INSTALLED
from tools.workspace import Distribution, name_of

OWN = {name_of(one.name) for one in WORKSPACE.values()}
#: What only type checkers import, which bring it.
FOR_CHECKERS = {"typing_extensions"}
FOR_DEVICES = {"escnet-runtime", "escnet-engines", "escnet-bench"}
#: What `make floors` does not install: it needs PyTorch, or a GPU.
WITHOUT_FLOOR = NOT_INSTALLED | {
    "einops",
    "nvidia-cuda-nvrtc",
    "scikit-learn",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt-rtx-cu13-libs",
    "timm",
    "torch",
}
SCRIPTS = [
    pytest.param(script, target, id=script)
    for one in WORKSPACE.values()
    for script, target in one.project.get("scripts", {}).items()
]

# Hosts that serve packages, and folders of one machine. Written so as not to match themselves.
UNWANTED = re.compile(
    r"pypi\.(?:org|nvidia)|python(?:hosted)\.org|download\.pytorch\.(?:org)|conda\.(?:anaconda)"
    r"|--(?:extra-)?index-(?:url)|--find-(?:links)"
    r"|(?<![\w./~$}])/(?:work|root|home/\w+|Users/\w+|opt/(?:pypi|wheels))/"
)


@pytest.fixture(params=WORKSPACE)
def one(request: pytest.FixtureRequest) -> Distribution:
    """Each distribution of the workspace."""
    return WORKSPACE[str(request.param)]


def pins(file: str = "constraints.txt") -> dict[str, Version]:
    """Normalised name → version, as ``constraints.txt`` has it."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name_of(name): Version(version) for name, version in pairs}


def test_all_distributions_have_one_version() -> None:
    assert len({one.project["version"] for one in WORKSPACE.values()}) == 1


def test_siblings_are_required_at_that_version(one: Distribution) -> None:
    lines = [line for table in one.requirements().values() for line in table]
    siblings = [Requirement(line) for line in lines if name_of(line) in OWN]
    assert {str(sibling.specifier) for sibling in siblings} <= {f"=={one.project['version']}"}


def test_metadata_is_the_same_everywhere(one: Distribution) -> None:
    assert one.project["license"] == "Apache-2.0"
    # JetPack 6 has Python 3.10; what it does not install may use more.
    oldest = ">=3.10" if one.name in FOR_DEVICES else ">=3.11"
    assert one.project["requires-python"] == oldest
    assert one.project["classifiers"] == WORKSPACE["escnet"].project["classifiers"]
    assert "Typing :: Typed" in one.project["classifiers"]
    assert (one.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_packages_are_typed(one: Distribution) -> None:
    assert (one.folder / one.package / "py.typed").is_file()
    assert (one.folder / one.package / "__init__.py").is_file()


def test_what_is_required_is_pinned_and_allowed_by_its_bound(one: Distribution) -> None:
    pinned = pins()
    for lines in one.requirements().values():
        for requirement in map(Requirement, lines):
            name = name_of(requirement.name)
            elsewhere = requirement.marker is not None and not requirement.marker.evaluate()
            if name not in OWN | NOT_INSTALLED and not elsewhere:
                assert name in pinned, f"{requirement} of {one.name} is not in constraints.txt"
                assert pinned[name] in requirement.specifier


def test_floors_are_the_lowest_versions_that_devices_accept() -> None:
    accepted: dict[str, set[Version]] = {}
    for one in (one for one in WORKSPACE.values() if one.name in FOR_DEVICES):
        tables = [lines for table, lines in one.requirements().items() if table != "build"]
        for requirement in (Requirement(line) for lines in tables for line in lines):
            name = name_of(requirement.name)
            elsewhere = requirement.marker is not None and not requirement.marker.evaluate()
            if name not in OWN | WITHOUT_FLOOR and not elsewhere:
                bounds = {part.version for part in requirement.specifier if part.operator == ">="}
                accepted.setdefault(name, set()).update(map(Version, bounds))
    assert accepted == {name: {version} for name, version in pins("floors.txt").items()}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
def test_the_extra_of_gpus_brings_a_compiler_of_kernels(python: str, machine: str) -> None:
    """Windows calls x86-64 AMD64. On a Jetson with JetPack 6 the compiler is JetPack's own."""
    place = {"python_version": python, "python_full_version": f"{python}.0"}
    lines = map(Requirement, WORKSPACE["escnet_runtime"].extras["cuda"])
    taken = [
        one.name
        for one in lines
        if one.marker is None or one.marker.evaluate({**place, "platform_machine": machine})
    ]
    on_jetpack = python == "3.10" and machine == "aarch64"
    assert len([name for name in taken if "nvrtc" in name]) == (0 if on_jetpack else 1)


def test_what_is_imported_is_required(one: Distribution) -> None:
    """A package must not live off what another one happens to bring along."""
    tables = one.requirements()
    run_time = [k for k in tables if k == "dependencies" or k.startswith("extra")]
    required = {name_of(line) for table in run_time for line in tables[table]}
    providers = packages_distributions()
    for path, names in modules_of(one):
        for name in names - {one.package, *FOR_CHECKERS}:
            given = {name_of(provider) for provider in providers.get(name, [])}
            assert not given or given & required, f"{path} imports {name}: declare it"


def test_what_only_checkers_import_is_hidden_from_the_rest(one: Distribution) -> None:
    for path in (one.folder / one.package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        hidden = {
            inner
            for block in blocks
            if ast.unparse(block.test) == "TYPE_CHECKING"
            for inner in ast.walk(block)
        }
        for node in set(ast.walk(tree)) - hidden:
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module not in FOR_CHECKERS, f"{path}:{node.lineno}"


@pytest.mark.parametrize(("script", "target"), SCRIPTS)
def test_console_scripts_exist(script: str, target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert shutil.which(script), f"{script} is not installed in this environment"


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("escnet-bench", "escnet_bench"),
        ("escnet-build", "escnet_engines"),
        ("escnet-eval", "escnet_bench.eval_command"),
        ("escnet-export", "escnet_export"),
        ("escnet-prepare", "escnet_bench.prepare_command"),
        ("escnet-segment", "escnet_runtime.commands.segment"),
        ("escnet-train", "escnet.train"),
        ("escnet-verify", "escnet_runtime.commands.verify"),
    ],
)
def test_commands_run_as_modules(script: str, module: str) -> None:
    """Where the folder of scripts is not on the path, as of pip's on Windows."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--version"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == f"{script} {WORKSPACE['escnet'].project['version']}\n", done.stderr


def test_files_name_no_registry_and_no_folder_of_one_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: cannot tell the project's files from others")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    offenders = []
    for name in filter(None, output.split("\0")):
        for number, line in enumerate(_text(ROOT / name).splitlines(), start=1):
            if UNWANTED.search(line):
                offenders.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not offenders


@pytest.mark.parametrize(
    "line",
    ["see https://pypi" + ".org/x", "pip --extra-index" + "-url y", "open('/wo" + "rk/x')"],
)
def test_unwanted_lines_are_recognised(line: str) -> None:
    assert UNWANTED.search(line)


@pytest.mark.parametrize("line", ["escnet/work/x", "$HOME/work/x", "~/work/x", "pypi as a word"])
def test_ordinary_lines_are_left_alone(line: str) -> None:
    assert not UNWANTED.search(line)


def _text(path: Path) -> str:
    """The text of a file, or nothing for a binary one or one just deleted."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
        return ""
