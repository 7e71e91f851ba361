"""What the five ``pyproject.toml`` of this workspace declare. Standard library only."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DISTRIBUTIONS", "Distribution", "distributions", "name_of", "third_party"]

# Folder of each distribution, relative to the root, and the package in it.
DISTRIBUTIONS = {
    "runtime": "escnet_runtime",
    "engines": "escnet_engines",
    ".": "escnet",
    "export": "escnet_export",
    "benchmarks": "escnet_bench",
}


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One ``pyproject.toml``: its folder, its package and its parsed tables."""

    folder: Path
    package: str
    tables: dict[str, Any]

    @property
    def project(self) -> dict[str, Any]:
        """The ``[project]`` table."""
        table: dict[str, Any] = self.tables["project"]
        return table

    @property
    def name(self) -> str:
        """The name it is installed by, as declared."""
        return str(self.project["name"])

    @property
    def extras(self) -> dict[str, list[str]]:
        """Extra → its requirements."""
        return dict(self.project.get("optional-dependencies", {}))

    def requirements(self) -> dict[str, list[str]]:
        """Every requirement it declares, by table: run time, each extra, each group, build."""
        return {
            "dependencies": list(self.project.get("dependencies", [])),
            **{f"extra {extra}": list(lines) for extra, lines in self.extras.items()},
            **{f"group {k}": list(v) for k, v in self.tables.get("dependency-groups", {}).items()},
            "build": list(self.tables["build-system"]["requires"]),
        }


def distributions(root: Path) -> list[Distribution]:
    """Read the workspace at ``root``, in the order in which the distributions build on each other.

    Raises OSError or tomllib.TOMLDecodeError if a ``pyproject.toml`` is missing or malformed.
    """
    found = []
    for folder, package in DISTRIBUTIONS.items():
        path = root / folder / "pyproject.toml"
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        found.append(Distribution(folder=path.parent, package=package, tables=tables))
    return found


def name_of(requirement: str) -> str:
    """The normalised distribution name of a requirement or of a pin: ``A_b[c]>=1`` → ``a-b``.

    Normalisation is that of the name specification of the Python packaging guide (PEP 503).
    """
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    if match is None:
        raise ValueError(f"no distribution name in {requirement!r}")
    return re.sub(r"[-_.]+", "-", match[1]).lower()


def third_party(root: Path, *, without: frozenset[str] = frozenset()) -> list[str]:
    """All requirements of the workspace, sorted, but for its own distributions and ``without``."""
    workspace = distributions(root)
    excluded = {name_of(one.name) for one in workspace} | without
    lines = {line for one in workspace for table in one.requirements().values() for line in table}
    return sorted(line for line in lines if name_of(line) not in excluded)
