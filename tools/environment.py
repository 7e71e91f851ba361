"""The development environment of a checkout, in two layers, both in one cache folder.

``dependencies-KEY``
    Every third-party package at its version of ``constraints.txt``: about 6 GB, several minutes.
    Shared by all checkouts. KEY names ``constraints.txt``, what the ``pyproject.toml`` files
    require, the Python and the platform, so that it is built anew when one of them changes.
``checkout-KEY``
    A few hundred kilobytes, a few seconds: sees the packages of the first layer and has the five
    distributions of one checkout installed editable, with their commands. KEY names the checkout's
    path, the first layer and the ``pyproject.toml`` files.

The cache is ``$ESCNET_ENV_CACHE``, else ``escnet-dev`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
A layer counts only once its file ``complete`` is there, which is written last. One process builds
at a time, under a lock its installer inherits: a half-built layer is never used, and not rebuilt
before a left-over installer has ended. Virtual environments hold their own path, so a layer is
built where it stays instead of being renamed into place. Standard library only.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tools.workspace import DISTRIBUTIONS, third_party

__all__ = [
    "EnvironmentBuildError",
    "activated",
    "adopt_commands",
    "cache_folder",
    "checkout_environment",
    "is_complete",
    "locked",
    "run_installer",
    "say",
]

# Not tested here. The first installs over onnxruntime's files, the second is built by nvcc, the
# third fetches its libraries from an index of NVIDIA's own.
NOT_INSTALLED = frozenset({"onnxruntime-gpu", "pycuda", "tensorrt"})
NEEDED_BYTES = 8 * 10**9
LOG_TAIL_LINES = 25


class EnvironmentBuildError(Exception):
    """The development environment cannot be built; the message says why and what to do."""


def checkout_environment(root: Path) -> Path:
    """Return the environment of the checkout at ``root``; build what is missing of it.

    Raises EnvironmentBuildError if there is no room or an installation fails.
    """
    cache = cache_folder(os.environ)
    requirements = third_party(root, without=NOT_INSTALLED)
    dependencies = cache / f"dependencies-{dependency_key(root, requirements)}"
    checkout = cache / f"checkout-{checkout_key(root, dependencies)}"
    if is_complete(dependencies) and is_complete(checkout):
        return checkout
    with locked(cache) as lock:
        if not is_complete(dependencies):
            _build_dependencies(dependencies, root, requirements, lock)
        if not is_complete(checkout):
            _build_checkout(checkout, root, dependencies, lock)
    return checkout


def cache_folder(variables: Mapping[str, str]) -> Path:
    """The folder of all environments, from the environment variables; absolute."""
    if variables.get("ESCNET_ENV_CACHE"):
        return Path(variables["ESCNET_ENV_CACHE"]).expanduser().resolve()
    home = variables.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().resolve() / "escnet-dev"


def dependency_key(root: Path, requirements: list[str]) -> str:
    """Name everything the shared layer depends on; comments in the constraints do not count."""
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    pins = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    python = [platform.python_implementation(), platform.python_version(), sys.base_prefix]
    return _digest([pins, requirements, python, platform.system(), platform.machine()])


def checkout_key(root: Path, dependencies: Path) -> str:
    """Name everything the layer of one checkout depends on."""
    projects = [root / folder / "pyproject.toml" for folder in DISTRIBUTIONS]
    texts = [project.read_text(encoding="utf-8") for project in projects]
    return _digest([str(root), str(dependencies), texts])


def activated(environment: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables under which commands of ``environment`` come first."""
    kept = {k: v for k, v in variables.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    path = os.pathsep.join([str(environment / "bin"), variables.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(environment)}


def _build_dependencies(target: Path, root: Path, requirements: list[str], lock: int) -> None:
    shutil.rmtree(target, ignore_errors=True)
    free = shutil.disk_usage(target.parent).free
    if free < NEEDED_BYTES:
        raise EnvironmentBuildError(
            f"the development environment needs about {NEEDED_BYTES / 1e9:.0f} GB and "
            f"{target.parent} has {free / 1e9:.1f} GB free. Make room, or set ESCNET_ENV_CACHE "
            "to a folder on another disk."
        )
    say(f"building the shared environment in {target}")
    say("  once for all checkouts: about 6 GB, one to five minutes and quiet meanwhile")
    others = sorted(one.name for one in target.parent.glob("dependencies-*/"))
    if others:
        say(f"  no longer needed by this checkout, yours to delete: {', '.join(others)}")
    started = time.monotonic()
    log = target.with_suffix(".log")
    run_installer([sys.executable, "-m", "venv", str(target)], log, lock)
    python = str(target / "bin" / "python")
    install = [python, "-m", "pip", "install", "-c", str(root / "constraints.txt"), *requirements]
    run_installer(install, log, lock)
    (target / "complete").touch()
    say(f"  done in {time.monotonic() - started:.0f} s")


def _build_checkout(target: Path, root: Path, dependencies: Path, lock: int) -> None:
    say(f"installing this checkout's packages in {target} (a few seconds)")
    shutil.rmtree(target, ignore_errors=True)
    log = target.with_suffix(".log")
    base = str(dependencies / "bin" / "python")
    run_installer([base, "-m", "venv", "--without-pip", str(target)], log, lock)
    python = target / "bin" / "python"
    (_site_packages(target) / "_escnet_dependencies.pth").write_text(
        f"{_site_packages(dependencies)}\n", encoding="utf-8"
    )
    projects = [argument for folder in DISTRIBUTIONS for argument in ("-e", str(root / folder))]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    run_installer([str(python), "-m", "pip", "install", *options, *projects], log, lock)
    adopt_commands(dependencies / "bin", target / "bin")
    (target / "complete").touch()


def adopt_commands(source: Path, target: Path) -> None:
    """Bring the commands of the shared layer over, so that they run under this checkout's Python.

    A script names its interpreter in its first line, or, where that path has a space or is long, in
    the second one, for a shell to start: that line is rewritten. Other programs are linked. What
    ``target`` has already is kept.
    """
    own, other = f"{target}/python".encode(), f"{source}/python".encode()
    for command in source.iterdir():
        here = target / command.name
        if here.exists() or command.name.lower().startswith("activate") or command.is_symlink():
            continue
        content = command.read_bytes()
        head = b"\n".join(content.split(b"\n", 2)[:2])
        if head.startswith(b"#!") and other in head:
            here.write_bytes(content.replace(other, own, 1))
            here.chmod(0o755)
        else:
            here.symlink_to(command)


def _site_packages(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def run_installer(command: list[str], log: Path, lock: int) -> None:
    """Run an installer with its output in ``log``; raise with the end of it when it fails."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    variables |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    with log.open("ab") as output:
        code = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            # The installer holds the lock too: if this process is killed, it does not let go.
            pass_fds=[lock],
            check=False,
        ).returncode
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        shown = "\n".join(f"  | {line}" for line in tail)
        raise EnvironmentBuildError(
            f"building the environment failed: exit {code} of {' '.join(command[:4])} ...\n{shown}"
            f"\nThe whole log is {log}. The next run starts over."
        )


@contextmanager
def locked(cache: Path) -> Iterator[int]:
    """Hold the cache's lock; yield its file descriptor. Waits, saying so, while another builds."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise EnvironmentBuildError(
            f"environments cannot be kept in {cache}: {error}. Make that folder writable, or set "
            "ESCNET_ENV_CACHE to another one."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: another process is building an environment in {cache}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def is_complete(layer: Path) -> bool:
    """Whether an environment was built to its end."""
    return (layer / "complete").is_file()


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def say(message: str) -> None:
    """Tell the user; standard output is the command's."""
    print(f"escnet: {message}", file=sys.stderr, flush=True)
