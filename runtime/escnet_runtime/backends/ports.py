"""Whether a graph that ONNX Runtime has loaded is the one that its bundle describes."""

from typing import Any

from ..errors import BackendError
from ..manifest import Stage

__all__ = ["require_ports"]


def require_ports(graph: str, session: Any, stage: Stage) -> None:
    """Refuse a file whose inputs and outputs are not those that the bundle says it has.

    Raises:
        BackendError: says which graph, what it has and what was expected.
    """
    for what, ports, specs in (
        ("inputs", session.get_inputs(), stage.inputs),
        ("outputs", session.get_outputs(), stage.outputs),
    ):
        got = {port.name: list(port.shape) for port in ports}
        expected = {spec.name: list(spec.shape) for spec in specs}
        if got != expected:
            raise BackendError(
                f"graph {graph!r} has the {what} {got!s:.300}, its bundle says {expected}; export "
                "the bundle again"
            )
