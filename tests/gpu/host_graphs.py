"""ONNX Runtime on the addresses of a device on the CPU, as lazy as that device is."""

from collections.abc import Callable, Mapping

from escnet_runtime.backends import GraphFile
from escnet_runtime.bundle import Bundle
from escnet_runtime.device.base import Device, Stream
from escnet_runtime.gpu.backend import Binding, DeviceBackend
from escnet_runtime.gpu.choose import Opener
from escnet_runtime.gpu.onnxruntime import OrtGraphs
from tests.device.host_device import HostDevice, Operation

__all__ = ["HostGraphs", "host_opener"]


class HostGraphs(OrtGraphs):
    """The shipped backend with the CPU provider; runs are work of the stream.

    ``fail`` is called before each run with the graph's name, by the host, as it is enqueued.
    """

    def __init__(
        self,
        graphs: Mapping[str, GraphFile],
        stream: Stream,
        device: HostDevice,
        *,
        capturable: bool = False,
    ) -> None:
        super().__init__(graphs, device, stream, provider="cpu")
        self._host = device
        self._may_be_captured = capturable
        self.fail: Callable[[str], None] = lambda graph: None

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        return self._may_be_captured

    def bind(
        self,
        graph: str,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        scratch: int = 0,
    ) -> Callable[[], None]:
        run = super().bind(graph, inputs, outputs, scratch=scratch)

        def enqueue() -> None:
            self.fail(graph)
            self._host.give(self.stream(), Operation("graph_run", graph), run)

        return enqueue


def host_opener(device: HostDevice, *, capturable: bool = False) -> Opener:
    """Makes a :class:`HostGraphs` for a bundle."""

    def make(bundle: Bundle, _: Device, stream: Stream, chunk: int | None) -> DeviceBackend:
        graphs = {
            name: GraphFile.of(bundle.file(stage.file), stage)
            for name, stage in bundle.manifest.stages.items()
        }
        return HostGraphs(graphs, stream, device, capturable=capturable)

    return make
