"""Run a command in this checkout's development environment, building that first if it is missing.

Usage: ``python3 tools/run.py COMMAND [ARGUMENT ...]``

Only the standard library is needed. The first run on a machine installs about 6 GB once, for all
checkouts; where that goes and when it is rebuilt is told in ``tools/environment.py``.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this file must still speak on an older Python)
    sys.exit(
        "escnet needs Python 3.11 or newer, this is Python {}.{} ({}). Name another one: "
        "`make PYTHON=/path/to/python3.11 test`.".format(*sys.version_info[:2], sys.executable)
    )

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.environment import EnvironmentBuildError, activated, checkout_environment  # noqa: E402


def main(arguments: list[str]) -> int:
    """Replace this process by the command, or return 2 (wrong usage) or 1 (no environment)."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        environment = checkout_environment(ROOT)
    except EnvironmentBuildError as error:
        print(f"escnet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("escnet: interrupted; the next run builds the environment anew", file=sys.stderr)
        return 130
    variables = activated(environment, os.environ)
    try:
        os.execvpe(arguments[0], arguments, variables)
    except FileNotFoundError:
        print(f"escnet: no command {arguments[0]!r} in {environment}/bin or PATH", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
