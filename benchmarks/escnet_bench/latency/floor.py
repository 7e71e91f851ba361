"""The least time that this hardware could take for an image."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["BOARD_PEAKS", "GPU_PEAKS", "GpuPeak", "Peak", "cpu_peak", "gpu_peak", "products"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuPeak:
    """Published dense TFLOP/s of fp16 (accumulated in fp32) and of fp32, and GB/s."""

    fp16: float
    fp32: float
    bandwidth: float


#: The driver's name of a GPU, without the maker → its peaks. Names are compared whole: an "L40S" is
#: no "L4", and "RTX 4090 Laptop GPU", "H100 NVL" and "GH200 480GB" are other or slower chips. fp16
#: is of tensor cores without sparsity, fp32 of the ordinary cores, both at boost clocks.
GPU_PEAKS: Final = {
    # NVIDIA H200 and H100 data sheets (SXM; half of the figures "with sparsity").
    "H200": GpuPeak(fp16=989.5, fp32=67.0, bandwidth=4800.0),
    "H100 PCIe": GpuPeak(fp16=756.5, fp32=51.0, bandwidth=2000.0),
    "H100 80GB HBM3": GpuPeak(fp16=989.5, fp32=67.0, bandwidth=3350.0),
    # NVIDIA A100 data sheets (SXM and PCIe have equal clocks, each size its memory).
    "A100-SXM4-80GB": GpuPeak(fp16=312.0, fp32=19.5, bandwidth=2039.0),
    "A100-SXM4-40GB": GpuPeak(fp16=312.0, fp32=19.5, bandwidth=1555.0),
    "A100 80GB PCIe": GpuPeak(fp16=312.0, fp32=19.5, bandwidth=1935.0),
    "A100-PCIE-40GB": GpuPeak(fp16=312.0, fp32=19.5, bandwidth=1555.0),
    # NVIDIA L4, L40 and L40S data sheets.
    "L4": GpuPeak(fp16=121.0, fp32=30.3, bandwidth=300.0),
    "L40": GpuPeak(fp16=181.05, fp32=90.5, bandwidth=864.0),
    "L40S": GpuPeak(fp16=362.05, fp32=91.6, bandwidth=864.0),
    # NVIDIA Ada architecture white paper, table 2 and appendix A.
    "GeForce RTX 4090": GpuPeak(fp16=165.2, fp32=82.6, bandwidth=1008.0),
    # NVIDIA Ampere GA102 white paper, table 9.
    "GeForce RTX 3090": GpuPeak(fp16=71.0, fp32=35.6, bandwidth=936.0),
}
_MAKER: Final = "NVIDIA "
#: What drivers call the GPU of every Jetson Orin.
_JETSON: Final = ("Orin", "Orin (nvgpu)")
_SUPER: Final = GpuPeak(fp16=17.0, fp32=2.1, bandwidth=102.0)
#: A Jetson's GPU is named by its board, as the device tree calls it.
BOARD_PEAKS: Final = {
    # Jetson AGX Orin series brief: the GPU has 170 TOPS of sparse int8, of which dense fp16 is a
    # quarter; for the module with 64 GB, at 1.3 GHz.
    "Jetson AGX Orin Developer Kit": GpuPeak(fp16=42.5, fp32=5.3, bandwidth=204.8),
    # Jetson Orin Nano Super data sheet: 67 TOPS of sparse int8, again a quarter; at 1.02 GHz.
    "Jetson Orin Nano Developer Kit Super": _SUPER,
    "Jetson Orin Nano Engineering Reference Developer Kit Super": _SUPER,
}
_Matrix: TypeAlias = npt.NDArray[np.float32]
_Product: TypeAlias = Callable[[], npt.ArrayLike]
_SIDE: Final = 1536
_TRIES: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The peak performance of the hardware.

    Attributes:
        device: "cpu" or the GPU's name.
        gflop_a_second: by precision.
        gb_a_second: memory bandwidth; None if not known.
        source: where the figures come from.
    """

    device: str
    gflop_a_second: dict[str, float]
    gb_a_second: float | None
    source: str

    def floor_ms(self, gflop: float, precision: str, weight_bytes: float) -> float | None:
        """Time of the operations or of reading the weights, whichever is longer.

        None for an unknown precision.
        """
        rate = self.gflop_a_second.get(precision)
        if rate is None:
            return None
        seconds = gflop / rate
        if self.gb_a_second is not None:
            seconds = max(seconds, weight_bytes / 1e9 / self.gb_a_second)
        return 1e3 * seconds


def cpu_peak(side: int = _SIDE, tries: int = _TRIES) -> Peak:
    """The measured peak: the fastest float32 matrix product of all installed libraries.

    One library would not do: one that is fast on an Intel may be half as fast on an AMD.
    """
    best, fastest = float("inf"), ""
    for library, product in products(side).items():
        product()
        for _ in range(tries):
            start = time.perf_counter()
            product()
            took = time.perf_counter() - start
            if took < best:
                best, fastest = took, library
    return Peak(
        device="cpu",
        gflop_a_second={"fp32": 2 * side**3 / best / 1e9},
        gb_a_second=None,
        source=f"measured: the fastest float32 product of {side}×{side}, {fastest}'s, before or "
        "after the rest",
    )


def products(side: int) -> dict[str, _Product]:
    """Library → a function that multiplies the same two square matrices; all that are installed."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(side, side)).astype(np.float32) for _ in range(2))
    found: dict[str, _Product] = {"NumPy": lambda: a @ b}
    for library, needs, product in (
        ("torch", ("torch",), _torch_product),
        ("ONNX Runtime", ("onnx", "onnxruntime"), _onnxruntime_product),
        ("OpenVINO", ("openvino",), _openvino_product),
    ):
        if all(importlib.util.find_spec(module) is not None for module in needs):
            found[library] = product(a, b)
    return found


def _torch_product(a: _Matrix, b: _Matrix) -> _Product:
    import torch  # an extra, as those below

    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: np.asarray(x @ y)  # no copy


def _onnxruntime_product(a: _Matrix, b: _Matrix) -> _Product:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    given, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name in "ac"
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [given],
        [result],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"a": a})[0]


def _openvino_product(a: _Matrix, b: _Matrix) -> _Product:
    from escnet_runtime.backends.unreported import unreported

    with unreported():
        import openvino
        from openvino import opset13 as ops

    given = ops.parameter(list(a.shape), np.float32)
    model = openvino.Model([ops.matmul(given, ops.constant(b), False, False)], [given])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return lambda: request.infer({0: a}, share_inputs=True, share_outputs=True)[0]


def gpu_peak(name: str, board: str | None = None) -> Peak | None:
    """The published peak; None for a GPU that is not in the tables.

    Args:
        name: the driver's name of the GPU.
        board: the board's name in the device tree, which identifies a Jetson's GPU.
    """
    device = board if name.removeprefix(_MAKER) in _JETSON and board else name
    table = GPU_PEAKS if device == name else BOARD_PEAKS
    peak = table.get(device.removeprefix(_MAKER))
    if peak is None:
        return None
    return Peak(
        device=device,
        gflop_a_second={"fp16": 1e3 * peak.fp16, "fp32": 1e3 * peak.fp32},
        gb_a_second=peak.bandwidth,
        source="published by NVIDIA: dense, at boost clocks",
    )
