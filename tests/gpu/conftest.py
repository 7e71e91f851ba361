"""A made-up model on a device on the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime import Segmenter, Vocabulary
from escnet_runtime.bundle import Bundle
from escnet_runtime.device.arrays import DeviceArray
from escnet_runtime.gpu import choose
from escnet_runtime.gpu.pipeline import DevicePipeline, Picture
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Manifest
from escnet_runtime.pipeline import Pipeline
from escnet_runtime.postprocess import UpsampleArgmax
from escnet_runtime.preprocess import preprocess
from escnet_runtime.windows import LogitCanvas, crops, plan_windows
from tests.device.host_device import HostDevice
from tests.gpu.made_up import GROUP, MadeUpGraphs, OnHost, made_up_manifest
from tests.kernels.machines import HostMachine

Floats = npt.NDArray[np.float32]
Lend = Callable[[npt.NDArray[np.uint8]], DeviceArray]


@pytest.fixture(scope="session")
def made_up(tiny_bundle: Path) -> Manifest:
    """The description of a small made-up model."""
    return made_up_manifest(Bundle.open(tiny_bundle).manifest)


@dataclass(eq=False)
class Rig:
    """A pipeline on a device, and what it is made of."""

    manifest: Manifest
    device: HostDevice
    graphs: MadeUpGraphs
    pipeline: DevicePipeline

    def picture(self, pixels: ImageArray, text: Floats, *, sliding: bool = False) -> Picture:
        """One image, waited for."""
        return self.pipeline.finish(self.pipeline.submit(pixels, text, sliding=sliding))

    def expected(self, pixels: ImageArray, text: Floats) -> Picture:
        """What the pipeline on the CPU gives."""
        return self._reduced(self._logits(pixels, text), pixels)

    def expected_in_windows(self, pixels: ImageArray, text: Floats) -> Picture:
        """What the pipeline on the CPU gives with sliding windows."""
        plan = plan_windows(self.manifest.model.image_size, self.manifest.model.logits[0])
        canvas, everything = LogitCanvas(plan, len(text)), slice(0, len(text))
        for crop, part in enumerate(crops(pixels, plan)):
            canvas.add(crop, everything, self._logits(part, text))
        return self._reduced(canvas.chunk(everything), pixels)

    def _logits(self, pixels: ImageArray, text: Floats) -> Floats:
        constants, model = self.manifest.constants, self.manifest.model
        pipeline = Pipeline(
            OnHost(self.manifest), blocks=model.blocks, ppg=constants.ppg, group=GROUP
        )
        encoded = pipeline.encode_image(preprocess(pixels, constants.preprocessing))
        [(_, logits)] = pipeline.logits(encoded, text, chunk=len(text))
        return logits

    def _reduced(self, logits: Floats, pixels: ImageArray) -> Picture:
        height, width = pixels.shape[:2]
        cells = (logits.shape[1], logits.shape[2])
        reduced = UpsampleArgmax(height, width, cells, len(logits), threads=1)
        reduced.add(0, logits)
        return Picture(*reduced.result())


class RigMaker:
    """Makes rigs and closes them."""

    def __init__(self, manifest: Manifest, host: HostMachine) -> None:
        self._manifest, self._host = manifest, host
        self.made: list[Rig] = []

    def __call__(
        self,
        *,
        chunk: int = 8,
        lazy: bool = True,
        capturable: bool = False,
        total: int = 1 << 30,
    ) -> Rig:
        device = HostDevice(self._host, lazy=lazy, total=total)
        graphs = MadeUpGraphs(self._manifest, device.stream(), device, capturable=capturable)
        pipeline = DevicePipeline(device, graphs, self._manifest, chunk=chunk)
        self.made.append(Rig(self._manifest, device, graphs, pipeline))
        return self.made[-1]


@pytest.fixture
def rig_maker(made_up: Manifest, host: HostMachine) -> Iterator[RigMaker]:
    """Makes rigs; when the test is over, closing them must leave nothing open but their stream."""
    maker = RigMaker(made_up, host)
    yield maker
    for rig in maker.made:
        rig.graphs.before = lambda graph: None  # what failed in the test works again
        rig.pipeline.close()
        assert [one.kind for one in rig.device.open] == ["stream"]
        assert rig.graphs.closed
        assert not rig.graphs.freed_untidily


@pytest.fixture
def rig(rig_maker: RigMaker) -> Rig:
    """One with chunks of 8."""
    return rig_maker()


@pytest.fixture(scope="session")
def image() -> ImageArray:
    """uint8 [11, 9, 3]."""
    return np.random.Generator(np.random.PCG64(1)).integers(0, 256, (11, 9, 3), np.uint8)


@pytest.fixture(scope="session")
def text() -> Floats:
    """300 categories, float32 [300, 6]."""
    made = np.random.Generator(np.random.PCG64(2)).standard_normal((300, 6)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


# A Segmenter on a device

NAMES = ["sky", "tree", "grass", "road", "house", "car"]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, made_up: Manifest) -> Bundle:
    """Of the made-up model; what is no graph is that of `tiny`."""
    return Bundle(root=tiny_bundle, manifest=made_up)


def opener_of(device: HostDevice) -> choose.Opener:
    """Makes the made-up graphs."""
    return lambda bundle, _, stream, chunk: MadeUpGraphs(bundle.manifest, stream, device)


@pytest.fixture(scope="module")
def device(host: HostMachine) -> HostDevice:
    """A device that the tests of this module share."""
    return HostDevice(host)


@pytest.fixture(scope="module")
def segmenter(bundle: Bundle, device: HostDevice) -> Iterator[Segmenter]:
    """On the device, shared by the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "_opener", lambda name, cache: opener_of(device))
        made = Segmenter(bundle, "onnxruntime-cuda", device=device, cache=None)
    with made:
        yield made
    assert not device.open


@pytest.fixture(scope="module")
def on_cpu(bundle: Bundle) -> Iterator[Segmenter]:
    """The same model on the CPU."""
    with Segmenter(bundle, OnHost(bundle.manifest), cache=None) as made:
        yield made


@pytest.fixture(scope="module")
def vocabulary(segmenter: Segmenter) -> Vocabulary:
    """Six categories; the text encoder runs on the device."""
    return segmenter.vocabulary(NAMES)


@pytest.fixture(scope="module")
def picture() -> ImageArray:
    """uint8 [12, 16, 3]."""
    return np.random.Generator(np.random.PCG64(4)).integers(0, 256, (12, 16, 3), np.uint8)


def frames(picture: ImageArray, count: int, asked: list[int]) -> Iterator[ImageArray]:
    """Pictures that differ; notes each that is asked for."""
    for index in range(count):
        asked.append(index)
        yield np.roll(picture, 5 * index, axis=1)


@pytest.fixture
def lend(device: HostDevice) -> Lend:
    """Puts an image on the device."""

    def make(pixels: ImageArray) -> DeviceArray:
        memory = device.allocate(pixels.nbytes)
        with device.stream() as stream, device.allocate_host(pixels.nbytes) as staging:
            staging.array[:] = pixels.reshape(-1)
            device.upload(memory.address, staging, pixels.nbytes, stream)
            stream.synchronize()
        return DeviceArray.of(device, memory, pixels.shape, np.uint8)

    return make
