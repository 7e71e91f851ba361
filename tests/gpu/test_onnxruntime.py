"""ONNX Runtime on given addresses: what goes wrong, and what is said then."""

import gc
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from escnet_runtime.backends import GraphFile
from escnet_runtime.errors import BackendError, OutOfDeviceMemory
from escnet_runtime.gpu import onnxruntime as module
from escnet_runtime.gpu.backend import Binding
from escnet_runtime.gpu.onnxruntime import OrtGraphs, require_provider
from escnet_runtime.manifest import Precision, Stage, TensorSpec
from tests.device.host_device import HostDevice
from tests.kernels.machines import HostMachine


def write_graph(path: Path) -> Stage:
    """y = x + x for float16 [n, 3]; its description."""
    kind = TensorProto.FLOAT16
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "x"], ["y"])],
            "double",
            [helper.make_tensor_value_info("x", kind, ["n", 3])],
            [helper.make_tensor_value_info("y", kind, ["n", 3])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, path)
    return Stage(
        file=path.name,
        sha256="0" * 64,
        bytes=path.stat().st_size,
        precision=Precision.FP16,
        inputs=(TensorSpec(name="x", dtype="float16", shape=("n", 3)),),
        outputs=(TensorSpec(name="y", dtype="float16", shape=("n", 3)),),
    )


@pytest.fixture
def graphs(tmp_path: Path, host: HostMachine) -> Iterator[OrtGraphs]:
    """One graph, "double"."""
    stage = write_graph(tmp_path / "double.onnx")
    file = GraphFile.of(tmp_path / "double.onnx", stage)
    device = HostDevice(host)
    with device.stream() as stream:
        made = OrtGraphs({"double": file}, device, stream, provider="cpu")
        yield made
        made.close()


def binding(array: np.ndarray, shape: tuple[int, ...] | None = None) -> Binding:
    """An array of this process."""
    return Binding(array.ctypes.data, "float16", shape or array.shape)


def test_a_bound_graph_runs_again_and_again_on_what_is_there(graphs: OrtGraphs) -> None:
    x, y = np.ones((5, 3), np.float16), np.zeros((5, 3), np.float16)
    run = graphs.bind("double", {"x": binding(x)}, {"y": binding(y)})
    assert not y.any()
    run()
    np.testing.assert_array_equal(y, 2 * x)
    x[:] = 7
    run()
    np.testing.assert_array_equal(y, 2 * x)


def test_weights_are_what_is_known_of_its_memory(graphs: OrtGraphs, tmp_path: Path) -> None:
    assert graphs.resident_bytes == 0
    graphs.load("double")
    assert graphs.resident_bytes == (tmp_path / "double.onnx").stat().st_size
    graphs.release("double")
    assert graphs.resident_bytes == 0


def test_wrong_bindings_name_the_graph(graphs: OrtGraphs) -> None:
    x = np.ones((5, 3), np.float16)
    with pytest.raises(BackendError, match="graph 'double'"):
        graphs.bind("double", {"z": binding(x)}, {"y": binding(x)})()
    with pytest.raises(BackendError, match="graph 'double' failed"):
        graphs.bind("double", {"x": binding(x, (3, 5))}, {"y": binding(x)})()


def test_unknown_graphs_and_closed_backends_say_so(graphs: OrtGraphs) -> None:
    with pytest.raises(BackendError, match="no graph 'triple'; there are double"):
        graphs.load("triple")
    graphs.close()
    with pytest.raises(BackendError, match="closed"):
        graphs.load("double")


def test_a_session_on_cuda_has_no_threads_of_its_own(
    tmp_path: Path, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty pools as wide as the machine would wait for work that is on the GPU."""
    made: list[Any] = []

    class Recording:
        def __getattr__(self, name: str) -> Any:
            return getattr(ort, name)

        def get_available_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def InferenceSession(self, path: str, options: Any, **_: Any) -> Any:
            made.append(options.intra_op_num_threads)
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    file = GraphFile.of(tmp_path / "double.onnx", write_graph(tmp_path / "double.onnx"))
    device = HostDevice(host)
    monkeypatch.setattr(module, "ort", Recording())
    with device.stream() as stream:
        graphs = OrtGraphs({"double": file}, device, stream)
        with pytest.raises(BackendError, match="cannot start it"):
            graphs.load("double")
    assert made == [1]


class Watched:
    """A session that notes which of ONNX Runtime's own CUDA graphs each run asks for."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, io: Any, options: Any) -> None:
        self.asked.append(options.get_run_config_entry("gpu_graph_id"))
        self._session.run_with_iobinding(io, options)


def test_what_is_bound_and_runs_often_has_a_cuda_graph_of_its_own(
    tmp_path: Path, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was asked for: a graph holds addresses, so each binding has its number."""
    monkeypatch.setenv("ESCNET_ORT_CUDA_GRAPHS", "1")
    file = GraphFile.of(tmp_path / "double.onnx", write_graph(tmp_path / "double.onnx"))
    device = HostDevice(host)
    x, y = np.ones((5, 3), np.float16), np.zeros((5, 3), np.float16)
    with device.stream() as stream:
        graphs = OrtGraphs({"double": file}, device, stream, provider="cpu")
        graphs.load("double")
        graphs._sessions["double"] = watched = Watched(graphs._sessions["double"])
        one, other, once = (
            graphs.bind("double", {"x": binding(x)}, {"y": binding(y)}) for _ in range(3)
        )
        for run in (one, one, one, once, other, one, other, other):
            run()
        with graphs.tidying():
            one()
        graphs.close()
    assert watched.asked == ["-1", "-1", "1", "-1", "-1", "1", "-1", "2", "1"]
    np.testing.assert_array_equal(y, 2 * x)


def test_cuda_graphs_of_onnx_runtime_are_off_by_default(graphs: OrtGraphs) -> None:
    x, y = np.ones((5, 3), np.float16), np.zeros((5, 3), np.float16)
    graphs.load("double")
    options = graphs._plain.passing
    with pytest.raises(RuntimeError, match="gpu_graph_id"):
        options.get_run_config_entry("gpu_graph_id")
    run = graphs.bind("double", {"x": binding(x)}, {"y": binding(y)})
    for _ in range(4):
        run()
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_the_provider_is_asked_for_cuda_graphs(
    wanted: str, tmp_path: Path, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCNET_ORT_CUDA_GRAPHS", wanted)
    monkeypatch.setattr(module, "require_provider", lambda _: None)
    device = HostDevice(host)
    with device.stream() as stream:
        provider = OrtGraphs({}, device, stream)._provider_with_options()
    assert isinstance(provider, tuple)
    assert provider[1].get("enable_cuda_graph", "0") == wanted


def test_a_file_that_is_another_graph_is_refused(tmp_path: Path, host: HostMachine) -> None:
    write_graph(tmp_path / "double.onnx")
    other = Stage(
        file="double.onnx",
        sha256="0" * 64,
        bytes=1,
        precision=Precision.FP16,
        inputs=(TensorSpec(name="x", dtype="float16", shape=("n", 4)),),
        outputs=(TensorSpec(name="y", dtype="float16", shape=("n", 4)),),
    )
    device = HostDevice(host)
    with device.stream() as stream:
        file = GraphFile.of(tmp_path / "double.onnx", other)
        graphs = OrtGraphs({"double": file}, device, stream, provider="cpu")
        with pytest.raises(BackendError, match="export the bundle again"):
            graphs.load("double")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 123", OutOfDeviceMemory),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfDeviceMemory),
        ("Available memory of 5 is smaller than requested bytes of 9", OutOfDeviceMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", OutOfDeviceMemory),
        (
            "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
            OutOfDeviceMemory,
        ),
        ("Non-zero status code returned while running Add node", BackendError),
    ],
)
def test_out_of_memory_is_told_from_other_failures(
    said: str, kind: type[Exception], graphs: OrtGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def run_with_iobinding(self, *_: Any) -> None:
            raise RuntimeError(said)

    real = graphs._session("double")
    monkeypatch.setitem(graphs._sessions, "double", Session())
    x = np.ones((5, 3), np.float16)
    run = graphs.bind("double", {"x": binding(x)}, {"y": binding(x)})
    with pytest.raises(kind, match="graph 'double' failed in ONNX Runtime"):
        run()


def test_cuda_asks_for_our_stream_and_no_wait(
    tmp_path: Path, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are the provider's own words; what they do is for a GPU to show."""
    monkeypatch.setattr(module, "require_provider", lambda provider: None)
    device = ThirdGpu(host)
    with device.stream() as stream:
        graphs = OrtGraphs({}, device, stream)
        found = graphs._provider_with_options()
        assert isinstance(found, tuple)
        name, options = found
        assert name == "CUDAExecutionProvider"
        assert options["user_compute_stream"] == str(stream.handle)
        assert options["device_id"] == "2"
        entry = graphs._plain.passing.get_run_config_entry(
            "disable_synchronize_execution_providers"
        )
        assert entry == "1"
        assert not graphs.capturable


def test_a_session_that_could_not_be_waited_for_is_never_freed(
    graphs: OrtGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime would end the process in a callback of the stream."""
    x, y = np.ones((5, 3), np.float16), np.zeros((5, 3), np.float16)
    run = graphs.bind("double", {"x": binding(x)}, {"y": binding(y)})
    run()
    assert graphs.untidy
    session = weakref.ref(graphs._session("double"))
    for free in (partial(graphs.release, "double"), graphs.unload):
        free()
        assert list(graphs._sessions) == ["double"]
        assert graphs.untidy
    with graphs.tidying():
        run()
    assert not graphs.untidy
    run()
    del run
    graphs.close()
    gc.collect()
    assert session() is not None
    assert "its memory is not given back" in caplog.text


def test_sessions_outlive_a_device_that_was_closed_too_early(
    tmp_path: Path, host: HostMachine
) -> None:
    """Nothing can be freed in its context any more, and closing does not fail for it."""
    file = GraphFile.of(tmp_path / "double.onnx", write_graph(tmp_path / "double.onnx"))
    device = HostDevice(host)
    graphs = OrtGraphs({"double": file}, device, device.stream(), provider="cpu")
    session = weakref.ref(graphs._session("double"))
    device.close()
    graphs.close()
    gc.collect()
    assert session() is not None
    with pytest.raises(BackendError, match="closed"):
        graphs.load("double")


def test_a_session_that_was_waited_for_is_freed(graphs: OrtGraphs) -> None:
    x, y = np.ones((5, 3), np.float16), np.zeros((5, 3), np.float16)
    run = graphs.bind("double", {"x": binding(x)}, {"y": binding(y)})
    run()
    with graphs.tidying():
        run()
    session = weakref.ref(graphs._session("double"))
    del run
    graphs.unload()
    gc.collect()
    assert session() is None


class ThirdGpu(HostDevice):
    """The CPU, which says that it is GPU 2."""

    dlpack = (2, 2)


class Recorder:
    """A session, its binding and its end: notes what it is asked for, and whether in context."""

    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *_: Any, **__: Any) -> "Recorder":
        self._note("made")
        return self

    def io_binding(self) -> "Recorder":
        return self

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def bind_input(self, name: str, kind: str, number: int, *_: Any) -> None:
        self._note(name, kind, number)

    bind_output = bind_input

    def run_with_iobinding(self, *_: Any) -> None:
        self._note("run")

    def _note(self, *what: Any) -> None:
        assert self._device.is_current(), what
        self.calls.append(what)


def test_every_call_is_for_the_device_that_was_asked_for(
    tmp_path: Path, host: HostMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ThirdGpu(host)
    recorder = Recorder(device)
    monkeypatch.setattr(module, "require_provider", lambda provider: None)
    monkeypatch.setattr("onnxruntime.InferenceSession", recorder)
    write_graph(tmp_path / "double.onnx")
    file = GraphFile(tmp_path / "double.onnx", Precision.FP16)
    x = np.ones((5, 3), np.float16)
    with device.stream() as stream:
        graphs = OrtGraphs({"double": file}, device, stream)
        graphs.bind("double", {"x": binding(x)}, {"y": binding(x)})()
        assert recorder.calls == [("made",), ("x", "cuda", 2), ("y", "cuda", 2), ("run",)]
        assert not device.is_current()


def test_a_provider_that_is_not_there_names_what_to_install() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(BackendError, match=r"has no CUDAExecutionProvider.*onnxruntime-gpu"):
        require_provider("cuda")
