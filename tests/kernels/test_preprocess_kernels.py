"""The kernels of pre-processing give the tensor of the CPU path, bit for bit."""

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.errors import InputError
from escnet_runtime.images import ImageArray
from escnet_runtime.kernels import (
    DeviceImage,
    Layout,
    PreprocessPlan,
    normalise_launch,
    nv12_rgb_launch,
    preprocess_plan,
    resize_launch,
)
from escnet_runtime.nv12 import YuvEncoding, rgb_of_nv12
from escnet_runtime.preprocess import Preprocessing, preprocess, resize
from escnet_runtime.windows import WindowPlan, crops, plan_windows
from tests.kernels.machines import Array, Guarded, Machine

HD = YuvEncoding(matrix="bt709", range="limited")
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def spec_of(size: int) -> Preprocessing:
    return Preprocessing(size=size, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


# --- running the kernels -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """An image as it lies in memory, rows apart, and the RGB it stands for."""

    layout: Layout
    rgb: ImageArray
    planes: list[ImageArray]  # [rows, pitch] each
    encoding: YuvEncoding | None


def frame(
    height: int,
    width: int,
    *,
    layout: Layout = "rgb",
    gap: int = 0,
    encoding: YuvEncoding = HD,
    seed: int = 0,
) -> Frame:
    """Random bytes, those between the rows too."""
    random = np.random.default_rng(seed)
    if layout == "nv12":
        half = (-(-height // 2), -(-width // 2) * 2)
        luma = random.integers(0, 256, (height, width + gap), dtype=np.uint8)
        chroma = random.integers(0, 256, (half[0], half[1] + 2 * gap), dtype=np.uint8)
        pairs = chroma[:, : half[1]].reshape(half[0], -1, 2)
        rgb = rgb_of_nv12(luma[:, :width], pairs, encoding)
        return Frame(layout=layout, rgb=rgb, planes=[luma, chroma], encoding=encoding)
    channels = len(layout)
    pixels = random.integers(0, 256, (height, channels * width + gap), dtype=np.uint8)
    shaped = pixels[:, : channels * width].reshape(height, width, channels)
    order = [layout.index(letter) for letter in "rgb"]
    return Frame(layout=layout, rgb=shaped[:, :, order], planes=[pixels], encoding=None)


class Buffers:
    """The kernels' arrays for one image and one plan."""

    def __init__(self, machine: Machine, image: Frame, plan: PreprocessPlan) -> None:
        self.planes = [Guarded(machine, one) for one in image.planes]
        self.tables = Guarded(machine, plan.tables)
        self.scratch = Guarded(machine, np.full(plan.scratch_bytes, 77, np.uint8))
        shape = (1, 3, plan.size, plan.size)
        self.output = Guarded(machine, np.full(shape, math.nan, np.float32))
        height, width, _ = image.rgb.shape
        self.image = DeviceImage(
            layout=image.layout,
            height=height,
            width=width,
            pixels=self.planes[0].address,
            pitch=image.planes[0].shape[1],
            chroma=self.planes[-1].address,
            chroma_pitch=image.planes[-1].shape[1],
            encoding=image.encoding,
        )


def run(
    machine: Machine,
    image: Frame,
    plan: PreprocessPlan,
    *,
    offsets: list[tuple[int, int]] | None = None,
    seed: int = 0,
) -> list[Array]:
    """The tensors [1,3,S,S] of the windows at ``offsets``."""
    buffers = Buffers(machine, image, plan)
    tables, scratch = buffers.tables.address, buffers.scratch.address
    machine.launch(resize_launch(plan, buffers.image, tables=tables, scratch=scratch), seed=seed)
    tensors = []
    for offset in offsets or [(0, 0)]:
        launch = normalise_launch(
            plan,
            tables=tables,
            scratch=scratch,
            output=buffers.output.address,
            offset=offset,
        )
        machine.launch(launch, seed=seed)
        tensors.append(buffers.output.read())
    np.testing.assert_array_equal(buffers.tables.read(), plan.tables)
    for plane, before in zip(buffers.planes, image.planes, strict=True):
        np.testing.assert_array_equal(plane.read(), before)
    buffers.scratch.read()  # its guards are whole
    return tensors


def assert_same(got: Array, want: Array) -> None:
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


# --- what they compute ---------------------------------------------------------------------------


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    side = st.integers(1, 70) | st.integers(1, 5)
    return frame(
        draw(side),
        draw(side),
        layout=draw(st.sampled_from(LAYOUTS)),
        gap=draw(st.integers(0, 9)),
        encoding=YuvEncoding(
            matrix=draw(st.sampled_from(["bt601", "bt709"])),
            range=draw(st.sampled_from(["limited", "full"])),
        ),
        seed=draw(st.integers(0, 1 << 32)),
    )


@settings(max_examples=150, database=None)
@given(image=frames(), size=st.integers(1, 33), seed=st.integers(0, (1 << 32) - 1))
def test_the_tensor_is_that_of_the_cpu_path(
    machine: Machine, image: Frame, size: int, seed: int
) -> None:
    plan = preprocess_plan(spec_of(size), (image.rgb.shape[0], image.rgb.shape[1]))
    (got,) = run(machine, image, plan, seed=seed)
    assert_same(got, preprocess(image.rgb, spec_of(size)))


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (20000, 10), (10, 20000), (1, 3000), (216, 384), (48, 48)]
)
def test_images_of_any_size(machine: Machine, height: int, width: int) -> None:
    for layout in ("bgr", "nv12"):
        image = frame(height, width, layout=layout, gap=3)
        (got,) = run(machine, image, preprocess_plan(spec_of(48), (height, width)))
        assert_same(got, preprocess(image.rgb, spec_of(48)))


def test_extreme_pixels_stay_in_range(machine: Machine) -> None:
    """Weights that are rounded may add up to more than one."""
    white = Frame(
        layout="rgb",
        rgb=np.full((700, 90, 3), 255, np.uint8),
        planes=[np.full((700, 270), 255, np.uint8)],
        encoding=None,
    )
    (got,) = run(machine, white, preprocess_plan(spec_of(13), (700, 90)))
    assert_same(got, preprocess(white.rgb, spec_of(13)))


@pytest.mark.parametrize("layout", ["rgb", "nv12"])
@pytest.mark.parametrize(("height", "width"), [(37, 90), (90, 37)])
def test_windows_are_those_of_the_cpu_path(
    machine: Machine, layout: Layout, height: int, width: int
) -> None:
    """The first launch serves the four windows; the whole image has a plan of its own."""
    windows: WindowPlan = plan_windows(24, 12)
    image, spec = frame(height, width, layout=layout), spec_of(24)
    canvas = preprocess_plan(spec, (height, width), canvas=windows.canvas_pixels)
    got = run(machine, image, canvas, offsets=list(windows.pixel_offsets))
    got += run(machine, image, preprocess_plan(spec, (height, width)))
    for tensor, crop in zip(got, crops(image.rgb, windows), strict=True):
        assert_same(tensor, preprocess(crop, spec))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (6, 8), (7, 9), (37, 90)])
@pytest.mark.parametrize("range_", ["limited", "full"])
def test_nv12_becomes_the_rgb_of_the_cpu_path(
    machine: Machine, height: int, width: int, range_: Any
) -> None:
    encoding = YuvEncoding(matrix="bt709", range=range_)
    image = frame(height, width, layout="nv12", gap=3, encoding=encoding)
    buffers = Buffers(machine, image, preprocess_plan(spec_of(8), (height, width)))
    rgb = Guarded(machine, np.full((height, width, 3), 77, np.uint8))
    machine.launch(nv12_rgb_launch(buffers.image, rgb.address), seed=height)
    np.testing.assert_array_equal(rgb.read(), image.rgb)


def test_a_part_of_an_image_is_an_image(machine: Machine) -> None:
    """By its address and the pitch of the whole."""
    image = frame(40, 50, layout="bgra", gap=5)
    plan = preprocess_plan(spec_of(16), (20, 30))
    buffers = Buffers(machine, image, plan)
    whole = buffers.image
    part = dataclasses.replace(
        whole, height=20, width=30, pixels=whole.pixels + 7 * whole.pitch + 11 * 4
    )
    tables, scratch = buffers.tables.address, buffers.scratch.address
    output = buffers.output
    machine.launch(resize_launch(plan, part, tables=tables, scratch=scratch))
    machine.launch(normalise_launch(plan, tables=tables, scratch=scratch, output=output.address))
    assert_same(output.read(), preprocess(image.rgb[7:27, 11:41], spec_of(16)))


def test_tables_resize_pictures_of_cameras_as_pillow_does() -> None:
    """The host's part alone, where running every thread would take long."""
    for height, width, size in [(1080, 1920, 384), (480, 640, 336), (1500, 700, 640)]:
        rgb = frame(height, width).rgb
        plan = preprocess_plan(spec_of(size), (height, width))
        parts = plan.tables[768:]
        first, second = np.split(parts, [parts.size - _ints(min(height, width), size)])
        pixels = rgb if plan.rows_first else rgb.transpose(1, 0, 2)
        once = _resized(pixels, first.reshape(-1, size)).transpose(1, 0, 2)
        twice = _resized(once, second.reshape(-1, size))
        got = twice.transpose(1, 0, 2) if plan.rows_first else twice
        np.testing.assert_array_equal(got, resize(rgb, size, size))


def _ints(n: int, m: int) -> int:
    return (2 + 2 * math.ceil(max(n, m) / m) + 1) * m


def _resized(pixels: ImageArray, table: Array) -> ImageArray:
    """Rows of uint8 [n,k,3] by a table of the kernel, [2 + taps, m]."""
    first, count, weights = table[0], table[1], table[2:]
    total = np.full((table.shape[1], *pixels.shape[1:]), 1 << 21, np.int32)
    for tap, weight in enumerate(weights):
        row = np.minimum(first + tap, len(pixels) - 1)
        total += np.where(tap < count, weight, 0)[:, None, None] * pixels[row].astype(np.int32)
    return (total >> 22).clip(0, 255).astype(np.uint8)


# --- bad input -----------------------------------------------------------------------------------

RGB: dict[str, Any] = {"layout": "rgb", "height": 4, "width": 5, "pixels": 256, "pitch": 15}
NV12: dict[str, Any] = {
    **RGB,
    "layout": "nv12",
    "chroma": 512,
    "chroma_pitch": 6,
    "encoding": HD,
}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            {**RGB, "layout": "yuyv"},
            "got layout 'yuyv'; expected one of rgb, bgr, rgba, bgra, nv12",
        ),
        ({**RGB, "height": 0}, "got 0×5 pixels; expected sides of 1 to 1048576"),
        ({**RGB, "width": (1 << 20) + 1}, "got 4×1048577 pixels"),
        ({**RGB, "pitch": 14}, "got a pitch of 14 bytes for 5 pixels of rgb; expected at least 15"),
        ({**RGB, "layout": "rgba"}, "expected at least 20"),
        ({**NV12, "pitch": 4}, "got a pitch of 4 bytes for 5 pixels of nv12; expected at least 5"),
        ({**NV12, "chroma": 0}, "got nv12 with chroma at 0"),
        ({**NV12, "chroma_pitch": 5}, "its pitch 5 .* at least 6 bytes"),
        ({**NV12, "encoding": None}, "encoding None; expected .* a YuvEncoding"),
    ],
)
def test_images_the_kernels_do_not_take_are_refused(image: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DeviceImage(**image)


def test_plans_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="got 0×5 pixels"):
        preprocess_plan(spec_of(8), (0, 5))
    with pytest.raises(InputError, match="got a canvas of 7 px for inputs of 8 px"):
        preprocess_plan(spec_of(8), (5, 5), canvas=7)


def test_an_image_of_another_size_than_the_plan_is_refused() -> None:
    plan = preprocess_plan(spec_of(8), (5, 4))
    with pytest.raises(InputError, match="got an image of 4×5 pixels for a plan of 5×4"):
        resize_launch(plan, DeviceImage(**RGB), tables=0, scratch=0)


def test_only_nv12_becomes_rgb() -> None:
    with pytest.raises(InputError, match="got an image of layout 'rgb'; expected 'nv12'"):
        nv12_rgb_launch(DeviceImage(**RGB), 0)


@pytest.mark.parametrize("offset", [(-1, 0), (0, 5), (5, 0)])
def test_windows_that_leave_the_canvas_are_refused(offset: tuple[int, int]) -> None:
    plan = preprocess_plan(spec_of(8), (5, 4), canvas=12)
    with pytest.raises(InputError, match="expected offsets from 0 to 4"):
        normalise_launch(plan, tables=0, scratch=0, output=0, offset=offset)
