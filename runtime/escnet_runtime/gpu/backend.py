"""What the pipeline on a device asks of a library that runs graphs there."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ..device.base import Stream
from ..manifest import DType

__all__ = ["Binding", "DeviceBackend"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A contiguous tensor at an address."""

    address: int
    dtype: DType
    shape: tuple[int, ...]


class DeviceBackend(Protocol):
    """Runs graphs on addresses, in order on the stream that it was made with.

    Nothing of it waits for the device, but for loading and closing. Any thread may call it, with
    any context: it makes that of its device the current one for its library.
    """

    @property
    def name(self) -> str:
        """The name it is chosen by, for instance ``"tensorrt"``."""

    @property
    def description(self) -> str:
        """One line for people: library, version."""

    @property
    def capturable(self) -> bool:
        """Whether its work can be captured in a CUDA graph."""

    @property
    def most_rows(self) -> int | None:
        """The most categories that a graph takes at once; None for any number."""

    @property
    def resident_bytes(self) -> int:
        """Device memory that its loaded graphs hold, as far as it is known: weights at least."""

    def scratch_bytes(self) -> int:
        """Memory that all graphs share while they run and that the caller provides, aligned."""

    def load(self, *graphs: str) -> None:
        """Make graphs ready to run.

        Raises:
            BackendError: a graph cannot be loaded; the message names it.
            OutOfDeviceMemory: they do not fit.
        """

    def bind(
        self,
        graph: str,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        scratch: int = 0,
    ) -> Callable[[], None]:
        """A call that enqueues ``graph`` on these addresses, again and again.

        Args:
            graph: its name.
            inputs: all of its inputs.
            outputs: all of its outputs.
            scratch: address of :meth:`scratch_bytes` bytes.

        The call raises BackendError or OutOfDeviceMemory, and names the graph.
        """

    @property
    def untidy(self) -> bool:
        """Whether the library keeps something of runs that nobody waited for."""

    def tidying(self) -> AbstractContextManager[None]:
        """Within it, runs may wait for the device, and free what was kept of those before.

        All graphs have to run in it before they are freed, if the backend is untidy. Those that
        could not stay, whatever is asked for.
        """

    def stream(self) -> Stream:
        """The stream it works on."""

    def release(self, graph: str) -> None:
        """Free what ``graph`` holds; what was bound to it is void, and it is loaded anew.

        One of which the library keeps something (:attr:`untidy`) stays as it is.
        """

    def unload(self) -> None:
        """Free what all graphs hold, as :meth:`release`."""

    def close(self) -> None:
        """Free everything that can be freed. Running afterwards is an error."""
