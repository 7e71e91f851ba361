"""Test what a device installs at the lowest versions that it accepts: ``make floors``.

``floors.txt`` names them. They go into an environment of their own in the cache folder, about
1 GB, with ``runtime/``, ``engines/`` and ``benchmarks/`` and without PyTorch. The bundle that tests
read is exported in the development environment, whose Python this is; what needs PyTorch is left
out. Arguments go to pytest.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.shared import ROOT, export_tiny
from tools.environment import (
    EnvironmentBuildError,
    activated,
    cache_folder,
    is_complete,
    locked,
    run_installer,
    say,
)

FLOORS = ROOT / "floors.txt"
ON_DEVICES = ("runtime", "engines", "benchmarks")
TESTERS = ("hypothesis", "pytest")
TESTS = (
    *(f"tests/{one}" for one in ("runtime", "native", "device", "kernels", "gpu", "world")),
    *(f"tests/engines/test_{one}.py" for one in ("chunks", "command", "plan", "profiles")),
    *(f"tests/bench/test_{one}.py" for one in ("clocks", "footprint", "report")),
)
# Old libraries use each other in ways that new ones warn of.
OPTIONS = ("-q", "-m", "not gpu", "-W", "ignore::DeprecationWarning")


def main(arguments: list[str]) -> int:
    """Build what is missing, run the tests, and return pytest's exit code."""
    try:
        environment = floors_environment(cache_folder(os.environ))
    except EnvironmentBuildError as error:
        print(f"escnet: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        say("exporting the bundle that the tests read (half a minute)")
        bundle = Path(folder) / "tiny-fp16"
        export_tiny(bundle)
        python = str(environment / "bin" / "python")
        asked = [] if any(one.startswith("tests/") for one in arguments) else TESTS
        tests = [python, "-m", "pytest", *OPTIONS, *asked, *arguments]
        variables = activated(environment, os.environ) | {"ESCNET_TEST_BUNDLE": str(bundle)}
        return subprocess.run(tests, cwd=ROOT, env=variables, check=False).returncode


def floors_environment(cache: Path) -> Path:
    """The environment of this checkout's floors in ``cache``; raises EnvironmentBuildError."""
    projects = [ROOT / folder for folder in ON_DEVICES]
    texts = [FLOORS.read_text(encoding="utf-8")]
    texts += [(one / "pyproject.toml").read_text(encoding="utf-8") for one in projects]
    key = hashlib.sha256("\0".join([sys.version, str(ROOT), *texts]).encode()).hexdigest()[:16]
    target = cache / f"floors-{key}"
    if is_complete(target):
        return target
    with locked(cache) as lock:
        if not is_complete(target):
            say(f"building the environment of the lowest versions in {target} (minutes)")
            log = target.with_suffix(".log")
            run_installer([sys.executable, "-m", "venv", "--clear", str(target)], log, lock)
            pip = [str(target / "bin" / "python"), "-m", "pip", "install"]
            own = [part for one in projects for part in ("-e", str(one))]
            run_installer([*pip, "-r", str(FLOORS), *own, *TESTERS], log, lock)
            (target / "complete").touch()
    return target


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
