"""Wheels of this workspace, and an environment as an edge device has it."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution as Installed
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.shared import ROOT
from tools.workspace import distributions, name_of

__all__ = ["EdgeEnvironment", "closure"]


@dataclass(frozen=True, kw_only=True)
class EdgeEnvironment:
    """A virtual environment with the runtime's wheel and what it requires, and nothing else."""

    folder: Path

    def run(
        self, arguments: Sequence[str | Path], *, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment outside the repository, say ``["escnet-verify", b]``.

        ``python`` sees neither the repository nor PYTHONPATH. Returns the output as text. With
        ``check``, a non-zero exit fails the test and shows both streams.
        """
        command, *rest = [str(one) for one in arguments]
        done = subprocess.run(
            [str(self.folder / "bin" / command), *rest],
            cwd=self.folder,
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin", "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            shown = f"{done.stdout}\n{done.stderr}"
            pytest.fail(
                f"{command} {rest} in the edge environment exits {done.returncode}\n{shown}"
            )
        return done


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Package name → the wheel built from this working tree, for all five distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    workspace = distributions(ROOT)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "-w", str(folder)]
    pip = [sys.executable, "-m", "pip", "wheel", *options]
    subprocess.run([*pip, *[str(one.folder) for one in workspace]], check=True, timeout=300)
    return {
        one.package: next(folder.glob(f"{one.name.replace('-', '_')}-{one.project['version']}-*"))
        for one in workspace
    }


@pytest.fixture(scope="session")
def edge_environment(
    wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> EdgeEnvironment:
    """The runtime as an edge device has it: its wheel with ``[onnxruntime]``, and no PyTorch.

    Needs no network: the third-party packages are links to those of the development environment,
    exactly the ones the wheel's requirements lead to. Then pip installs the wheel with its extra
    and checks, as it would anywhere, that every requirement is met.
    """
    folder = tmp_path_factory.mktemp("edge") / "environment"
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = folder / "lib" / version / "site-packages"
    runtime = next(one for one in distributions(ROOT) if one.package == "escnet_runtime")
    declared = [*runtime.project["dependencies"], *runtime.extras["onnxruntime"], "pip"]
    for installed in closure(declared).values():
        _link(installed, site_packages)
    environment = EdgeEnvironment(folder=folder)
    wheel = f"{wheels['escnet_runtime']}[onnxruntime]"
    environment.run(["python", "-I", "-m", "pip", "install", "--quiet", "--no-index", wheel])
    environment.run(["python", "-I", "-m", "pip", "check"])
    return environment


def closure(requirements: Sequence[str]) -> dict[str, Installed]:
    """Normalised name → installed distribution, for all that ``requirements`` lead to.

    Raises importlib.metadata.PackageNotFoundError if one of them is not installed.
    """
    found: dict[str, Installed] = {}
    seen: set[tuple[str, str]] = set()
    pending = [(Requirement(line), "") for line in requirements]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = name_of(requirement.name)
        found[name] = distribution(requirement.name)
        for wanted in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, wanted))
            pending += [(Requirement(line), wanted) for line in found[name].requires or []]
    return found


def _link(installed: Installed, target: Path) -> None:
    """Link the top-level files and folders of an installed distribution into ``target``."""
    tops = {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}
    for top in tops:
        source, here = Path(str(installed.locate_file(top))), target / top
        if source.exists() and not here.is_symlink():
            here.symlink_to(source)
