"""OpenVINO without its reports."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final, cast

__all__ = ["unreported"]

_REPORTS: Final = "openvino_telemetry"


@contextmanager
def unreported() -> Iterator[None]:
    """Within, ``import openvino`` finds no package that would report to its maker that it is used.

    It then takes its own stand-in, for as long as the process lives. No setting of it does that.
    """
    if _REPORTS in sys.modules:  # another part of the program uses it
        yield
        return
    sys.modules[_REPORTS] = cast(ModuleType, None)  # Python's mark of a module that is not there
    try:
        yield
    finally:
        del sys.modules[_REPORTS]
