"""Which calls our adapters make on a library's bindings, and which calls bindings have.

``python -m tests.engines.surface MODULE > tests/engines/surfaces/NAME.json`` writes the surface of
the bindings that are installed as MODULE, as far as the compiler and the runtime use them. Those of
TensorRT load without its libraries, if their nine functions (``createInferBuilder_INTERNAL`` and
the like) are there: that is how the files in ``surfaces/`` were made, of the wheels
``tensorrt-cu12-bindings`` 10.3.0 (JetPack 6's, the oldest that is promised), 10.12.0.36 and
10.16.1.11, and ``tensorrt_cu13_bindings`` 11.4.0.106.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

__all__ = ["SURFACES", "Recorder", "Surface", "require_calls", "surface_of", "takes"]

SURFACES: Final = Path(__file__).parent / "surfaces"
#: "Class.member" → first lines of its documentation, which are its signatures; "" for properties.
Surface = dict[str, str]

#: What the adapter subclasses; the library calls these, not we.
_BASES: Final = ("ILogger", "IProgressMonitor")


class Recorder:
    """Stands for a module, a class or an object of bindings, and notes what is asked of it.

    Args:
        target: what it stands for.
        calls: "Class.member" → numbers of arguments it was called with; shared by all recorders.
    """

    def __init__(self, target: Any, calls: dict[str, set[int]]) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_calls", calls)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not name.startswith("__") and not _is_base_member(self._target, name):
            self._calls.setdefault(_label(self._target, name), set())
        return self._wrap(value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._calls.setdefault(_label(self._target, name), set())
        setattr(self._target, name, _bare(value))

    def _wrap(self, value: Any, name: str) -> Any:
        if isinstance(value, type) and name in _BASES:
            return value  # to be subclassed
        if inspect.isroutine(value):
            label = _label(self._target, name)

            def call(*arguments: Any) -> Any:
                self._calls.setdefault(label, set()).add(len(arguments))
                return self._wrap(value(*map(_bare, arguments)), "")

            return call
        return Recorder(value, self._calls) if _is_of_bindings(value) else value

    def __call__(self, *arguments: Any) -> Any:
        self._calls.setdefault(f"{self._target.__name__}.__init__", set()).add(len(arguments))
        return self._wrap(self._target(*map(_bare, arguments)), "")


def _bare(value: Any) -> Any:
    return value._target if isinstance(value, Recorder) else value


def _is_of_bindings(value: Any) -> bool:
    """Left as they are: enumerations, which are compared; shapes and memory, which are read."""
    kind = value if isinstance(value, type) else type(value)
    plain = hasattr(kind, "__members__") or kind.__name__ in ("Dims", "IHostMemory")
    return "tensorrt" in kind.__module__ and not plain


def _is_base_member(target: Any, name: str) -> bool:
    return isinstance(target, ModuleType) and name in _BASES


def _label(target: Any, name: str) -> str:
    if isinstance(target, ModuleType):
        return name
    kind = target if isinstance(target, type) else type(target)
    owner = next((c for c in kind.__mro__ if name in vars(c)), kind)
    return f"{owner.__name__}.{name}"


def surface_of(module: Any, labels: Iterator[str] | list[str]) -> Surface:
    """Of ``labels``, those that ``module`` has, with their signatures."""
    found = {}
    for label in labels:
        value = module
        for part in label.split("."):
            value = getattr(value, part, None)
        if value is not None:
            found[label] = "\n".join(_signatures(value))
    return found


def _signatures(value: Any) -> list[str]:
    if isinstance(value, type) or not callable(value):
        return []
    text = re.sub(r"\b(?:\w*tensorrt\w*\.)+", "", value.__doc__ or "")  # modules say nothing
    return re.findall(r"^(?:\d+\. )?(\w+\(.*\)(?: -> .+)?)$", text, re.MULTILINE)


def takes(signatures: str, count: int) -> bool:
    """Whether one of the signatures takes ``count`` positional arguments behind ``self``."""
    return any(_takes(line, count) for line in signatures.splitlines() if "(*args" not in line)


def require_calls(surface: Surface, calls: dict[str, set[int]]) -> None:
    """Fail for calls that ``surface`` lacks, or takes with other numbers of arguments alone."""
    absent = sorted(calls.keys() - surface.keys())
    assert not absent, absent
    wrong = [
        f"{label} with {count} arguments: {surface[label]}"
        for label, counts in calls.items()
        for count in counts
        if surface[label] and not takes(surface[label], count)
    ]
    assert not wrong, wrong


def _takes(signature: str, count: int) -> bool:
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    if " -> " in inside:
        inside = inside[: inside.rindex(")")] if ")" in inside else inside
    depth, parts, part = 0, [], ""
    for character in inside:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    parameters = [one.strip() for one in [*parts, part] if one.strip()]
    own = [one for one in parameters if not one.startswith("self")]
    required = [one for one in own if "=" not in one]
    return len(required) <= count <= len(own)


def _main(name: str) -> None:
    from tests.engines.test_surface import recorded_calls  # it needs TensorRT-RTX
    from tests.gpu.fake_trt import runtime_calls

    labels = sorted({*recorded_calls("tensorrt"), *runtime_calls(rtx=False)})
    surface = surface_of(module := importlib.import_module(name), labels)
    document = {"version": module.__version__, "surface": surface}
    print(json.dumps(document, indent=2, sort_keys=True))


if __name__ == "__main__":
    _main(sys.argv[1])
