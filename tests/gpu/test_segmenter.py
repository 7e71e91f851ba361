"""A Segmenter on a device: the labels of the CPU, several threads, streams that end early."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from escnet_runtime import EscNetError, ImageError, InputError, Nv12Frame, Segmenter, Vocabulary
from escnet_runtime.backends import GraphFile
from escnet_runtime.bundle import Bundle
from escnet_runtime.device.base import Stream
from escnet_runtime.errors import (
    BackendError,
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    DeviceError,
)
from escnet_runtime.gpu import choose
from escnet_runtime.images import ImageArray
from escnet_runtime.manifest import Precision
from escnet_runtime.segmenter import ImageSource
from tests.device.host_device import HostDevice
from tests.gpu.conftest import NAMES, Lend, frames, opener_of
from tests.gpu.made_up import MadeUpGraphs
from tests.kernels.machines import HostMachine

# Results


def test_labels_are_those_of_the_cpu(
    segmenter: Segmenter, on_cpu: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    result = segmenter(picture, vocabulary)
    want = on_cpu(picture, on_cpu.vocabulary(NAMES))
    assert np.unique(want.labels).size > 1
    np.testing.assert_array_equal(result.labels, want.labels)
    np.testing.assert_allclose(result.confidence, want.confidence, atol=2e-3)
    assert result.labels.dtype == np.uint8
    assert result.names == tuple(NAMES)
    assert segmenter.backend == "made up, the CPU, as a device"


def test_repeated_categories_have_the_label_of_the_first(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """The device works on the distinct ones."""
    twice = segmenter.vocabulary(["sky", "sky", *NAMES[1:]])
    labels = segmenter(picture, vocabulary).labels
    np.testing.assert_array_equal(
        segmenter(picture, twice).labels, np.where(labels > 0, labels + 1, 0)
    )


def test_observers_see_the_graphs_of_the_device(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """The same walk over the graphs, whose tensors are then on the host."""
    seen = []
    observed = segmenter(
        picture, vocabulary, observer=lambda stage, where, outputs: seen.append(stage)
    )
    assert seen[0] == "image_encoder"
    assert seen[-1] == "decoder"
    assert "esc1_prompts" in seen
    np.testing.assert_array_equal(observed.labels, segmenter(picture, vocabulary).labels)


def test_sliding_windows_are_those_of_the_cpu(
    segmenter: Segmenter, on_cpu: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    want = on_cpu(picture, on_cpu.vocabulary(NAMES), window="sliding").labels
    np.testing.assert_array_equal(segmenter(picture, vocabulary, window="sliding").labels, want)


def test_sliding_windows_are_one_upload_also_in_a_stream(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray, device: HostDevice
) -> None:
    pixels = list(frames(picture, 3, []))
    want = [segmenter(one, vocabulary, window="sliding").labels for one in pixels]
    device.log.clear()
    stream = segmenter.stream(pixels, vocabulary, window="sliding")
    got = [result.labels for result in stream]
    np.testing.assert_array_equal(got, want)
    assert len(device.calls("upload")) == len(device.calls("download")) == 3


def test_memory_can_be_planned(segmenter: Segmenter, on_cpu: Segmenter) -> None:
    plan = segmenter.plan(6, (12, 16))
    assert plan.categories == 8
    assert "embedding" in plan.table()
    assert "canvas" in segmenter.plan(6, (12, 16), window="sliding").table()
    with pytest.raises(InputError, match="planned on a GPU, this Segmenter has made up"):
        on_cpu.plan(6, (12, 16))


@pytest.mark.parametrize(
    ("categories", "size", "message"),
    [
        (0, (12, 16), "categories is 0, expected a whole number of at least 1"),
        (2.5, (12, 16), "categories is 2.5"),
        (70_000, (12, 16), "expected 1 to 65535 categories"),
        (6, (12,), r"size is \(12,\), expected \(height, width\)"),
        (6, 12, "size is 12, expected"),
        (6, (0, 16), "height is 0"),
        (6, (12, 16.0), "width is 16.0"),
    ],
)
def test_a_plan_of_numbers_out_of_range_says_what_is_expected(
    segmenter: Segmenter, categories: Any, size: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        segmenter.plan(categories, size)


# Streams


def test_a_stream_gives_results_in_order_and_asks_for_no_more_than_two(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    asked: list[int] = []
    results = []
    for result in segmenter.stream(frames(picture, 4, asked), vocabulary):
        results.append(result)
        assert len(asked) - len(results) <= 1
    assert len(results) == 4
    for result, pixels in zip(results, frames(picture, 4, []), strict=True):
        np.testing.assert_array_equal(result.image, pixels)
        np.testing.assert_array_equal(result.labels, segmenter(pixels, vocabulary).labels)


def test_a_stream_is_one_after_the_other_on_the_cpu(on_cpu: Segmenter, picture: ImageArray) -> None:
    asked: list[int] = []
    words = on_cpu.vocabulary(NAMES)
    for count, result in enumerate(on_cpu.stream(frames(picture, 3, asked), words), start=1):
        assert len(asked) == count
        np.testing.assert_array_equal(result.labels, on_cpu(result.image, words).labels)
    assert count == 3


def test_other_calls_may_come_between(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """Also with another vocabulary and size, which take the arena."""
    other = segmenter.vocabulary(["sea", "sun"])
    stream = segmenter.stream(frames(picture, 3, []), vocabulary)
    got = []
    for result in stream:
        got.append(result.labels)
        segmenter(picture[:10], other)
    want = [segmenter(pixels, vocabulary).labels for pixels in frames(picture, 3, [])]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("where", ["device", "host"])
def test_words_may_change_while_a_stream_runs(
    segmenter: Segmenter, on_cpu: Segmenter, picture: ImageArray, where: str
) -> None:
    """The function is asked once an image is there; also for another number of words."""
    made = segmenter if where == "device" else on_cpu
    wanted = [NAMES, ["sea", "sun"], NAMES[:3], [f"thing {number}" for number in range(20)]]
    words = [made.vocabulary(names) for names in wanted]
    asked: list[int] = []
    results = list(made.stream(frames(picture, 4, asked), lambda: words[len(asked) - 1]))
    pixels = frames(picture, 4, [])
    for image, names, vocabulary, result in zip(pixels, wanted, words, results, strict=True):
        assert list(result.names) == names
        np.testing.assert_array_equal(result.labels, made(image, vocabulary).labels)


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_function_without_words_ends_a_stream_behind_the_results_before_it(
    segmenter: Segmenter, on_cpu: Segmenter, picture: ImageArray, where: str
) -> None:
    made = segmenter if where == "device" else on_cpu
    answers: list[Any] = [made.vocabulary(NAMES), ["sea", "sun"]]
    stream = made.stream([picture, picture], lambda: answers.pop(0))
    next(stream)
    with pytest.raises(InputError, match="vocabulary is list, expected a Vocabulary"):
        next(stream)

    def failing() -> Vocabulary:
        raise LookupError("the operator is away")

    with pytest.raises(LookupError, match="away"):
        next(made.stream([picture], failing))
    with pytest.raises(InputError, match="window is 'slide'"):
        made.stream([picture], failing, window="slide")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shortlist is 0"):
        made.stream([picture], failing, shortlist=0)
    made(picture, made.vocabulary(NAMES))


def test_a_stream_that_is_closed_early_leaves_nothing_behind(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray, device: HostDevice
) -> None:
    want = segmenter(picture, vocabulary).labels
    there = len(device.open)
    for _ in range(3):
        stream = segmenter.stream(frames(picture, 5, []), vocabulary)
        next(stream)
        stream.close()
    assert len(device.open) <= there + 5  # one more slot, which later images use
    np.testing.assert_array_equal(segmenter(picture, vocabulary).labels, want)


def test_an_image_that_cannot_be_read_ends_a_stream_behind_the_results_before_it(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray, tmp_path: Path
) -> None:
    bad = tmp_path / "none.png"
    bad.write_bytes(b"no image")
    stream = segmenter.stream([picture, bad, picture], vocabulary)
    np.testing.assert_array_equal(next(stream).labels, segmenter(picture, vocabulary).labels)
    with pytest.raises(ImageError):
        next(stream)


def test_a_source_that_fails_ends_a_stream_with_its_own_error(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    def source() -> Iterator[ImageArray]:
        yield picture
        raise OSError("the camera was unplugged")

    stream = segmenter.stream(source(), vocabulary)
    next(stream)
    with pytest.raises(OSError, match="unplugged"):
        next(stream)
    segmenter(picture, vocabulary)


# Shortlists


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_a_shortlist_is_that_of_the_cpu(
    keep: int,
    segmenter: Segmenter,
    on_cpu: Segmenter,
    lend: Lend,
    vocabulary: Vocabulary,
    picture: ImageArray,
) -> None:
    """Chosen on the host, then on the device with the others left out; also of arrays there."""
    want = on_cpu(picture, on_cpu.vocabulary(NAMES), shortlist=keep)
    images: list[ImageSource] = [picture, lend(picture)]
    for image in images:
        found = segmenter(image, vocabulary, shortlist=keep)
        assert found.kept == want.kept == keep
        np.testing.assert_array_equal(found.labels, want.labels)
        np.testing.assert_array_equal(found.image, picture)
    bridged = segmenter(picture, vocabulary, shortlist=keep, observer=lambda *_: None)
    np.testing.assert_array_equal(bridged.labels, want.labels)


def test_a_stream_of_shortlists(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """Two images on their way, each with categories of its own."""
    for shortlist in (3, 5):
        results = segmenter.stream(frames(picture, 4, []), vocabulary, shortlist=shortlist)
        for result, pixels in zip(results, frames(picture, 4, []), strict=True):
            want = segmenter(pixels, vocabulary, shortlist=shortlist)
            assert result.kept == want.kept
            np.testing.assert_array_equal(result.labels, want.labels)


def test_without_a_choice_an_image_is_one_upload_and_one_download(
    segmenter: Segmenter, device: HostDevice, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    """Keeping all is no shortlist."""
    segmenter(picture, vocabulary)
    for shortlist, copies in ((None, 1), (len(NAMES), 1), (2, 3)):
        device.log.clear()
        segmenter(picture, vocabulary, shortlist=shortlist)
        # Of a choice: the image for the encoder, and the text of those that are kept.
        assert len(device.calls("upload")) == copies


# Arrays on the device


def test_an_array_on_the_device_is_not_uploaded(
    segmenter: Segmenter,
    device: HostDevice,
    lend: Lend,
    vocabulary: Vocabulary,
    picture: ImageArray,
) -> None:
    want = segmenter(picture, vocabulary)
    array = lend(picture)
    device.log.clear()
    result = segmenter(array, vocabulary)
    assert not device.calls("upload")
    np.testing.assert_array_equal(result.labels, want.labels)
    np.testing.assert_array_equal(result.image, picture)


def test_the_fourth_channel_of_an_array_is_not_read(
    segmenter: Segmenter, lend: Lend, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    wide = np.concatenate([picture, picture[:, :, :1]], axis=2)
    result = segmenter(lend(wide), vocabulary)
    np.testing.assert_array_equal(result.labels, segmenter(picture, vocabulary).labels)
    np.testing.assert_array_equal(result.image, picture)


def test_a_stream_takes_arrays_of_the_device_too(
    segmenter: Segmenter, lend: Lend, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    pixels = list(frames(picture, 3, []))
    mixed: list[ImageSource] = [lend(pixels[0]), pixels[1], lend(pixels[2])]
    got = [result.labels for result in segmenter.stream(mixed, vocabulary)]
    np.testing.assert_array_equal(got, [segmenter(one, vocabulary).labels for one in pixels])


def test_windows_of_an_array_on_the_device(
    segmenter: Segmenter, lend: Lend, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    got = segmenter(lend(picture), vocabulary, window="sliding")
    want = segmenter(picture, vocabulary, window="sliding")
    np.testing.assert_array_equal(got.labels, want.labels)


@pytest.mark.parametrize("nv12", [False, True])
@pytest.mark.parametrize("way", ["shortlist", "observer", "whole"])
def test_what_is_still_being_written_is_waited_for(
    segmenter: Segmenter,
    device: HostDevice,
    vocabulary: Vocabulary,
    picture: ImageArray,
    way: str,
    nv12: bool,
) -> None:
    """Also where an array is downloaded first: nobody but the stream it names orders that."""
    maker = device.stream()

    def written(content: ImageArray) -> BeingWritten:
        return BeingWritten(device, maker, np.ascontiguousarray(content))

    frame = Nv12Frame(luma=picture[:, :, 0], chroma=picture[:6, :, 1])
    options: dict[str, dict[str, Any]] = {
        "shortlist": {"shortlist": 2},
        "observer": {"observer": lambda *_: None},
        "whole": {},
    }
    want = segmenter(frame if nv12 else picture, vocabulary, **options[way])
    image: Any = (
        Nv12Frame(luma=written(frame.luma), chroma=written(frame.chroma))
        if nv12
        else written(picture)
    )
    got = segmenter(image, vocabulary, **options[way])
    np.testing.assert_array_equal(got.image, want.image)
    np.testing.assert_array_equal(got.labels, want.labels)
    maker.close()


class BeingWritten:
    """An array of another library, whose content is given to a stream and not there yet."""

    def __init__(self, device: HostDevice, stream: Stream, content: ImageArray) -> None:
        self.shape = content.shape
        self._there, self._stream = np.zeros_like(content), stream
        self._source = device.allocate_host(content.nbytes)
        self._source.array[:] = content.reshape(-1)
        device.upload(device.lend(self._there), self._source, content.nbytes, stream)

    def __del__(self) -> None:
        self._source.close()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (int(self._there.ctypes.data), False),
            "stream": self._stream.handle,
            "version": 3,
        }


def test_arrays_of_another_shape_are_refused(
    segmenter: Segmenter, lend: Lend, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    with pytest.raises(ImageError, match=r"\[12, 16, 2\] on the device; expected \[H,W,3\] RGB"):
        segmenter(lend(np.ascontiguousarray(picture[:, :, :2])), vocabulary)


def test_an_array_of_a_gpu_is_nothing_for_the_cpu(
    on_cpu: Segmenter, lend: Lend, picture: ImageArray
) -> None:
    array = lend(picture)
    with pytest.raises(ImageError, match="copy it to the host"):
        on_cpu(array, on_cpu.vocabulary(NAMES))


# Threads


def test_ten_threads_share_a_segmenter(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    pictures = list(frames(picture, 3, []))
    other = segmenter.vocabulary(["sea", "sun"])
    words = [vocabulary, other]
    want = {
        (turn, which): segmenter(pictures[turn], words[which]).labels
        for turn in range(3)
        for which in range(2)
    }
    failures: list[object] = []

    def work(number: int) -> None:
        try:
            turn, which = number % 3, number % 2
            got = segmenter(pictures[turn], words[which]).labels
            np.testing.assert_array_equal(got, want[turn, which])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


# Failures


def test_an_error_in_the_middle_of_a_stream_leaves_the_segmenter_usable(
    segmenter: Segmenter, vocabulary: Vocabulary, picture: ImageArray
) -> None:
    assert segmenter.device_pipeline is not None
    graphs = segmenter.device_pipeline.backend
    assert isinstance(graphs, MadeUpGraphs)
    want = segmenter(picture, vocabulary).labels
    stream = segmenter.stream(frames(picture, 4, []), vocabulary)
    next(stream)

    def fail(graph: str) -> None:
        if graph == "esc1_sam":
            raise BackendError("made up")

    graphs.before = fail
    try:
        with pytest.raises(BackendError, match="made up"):
            next(stream)
    finally:
        graphs.before = lambda graph: None
    np.testing.assert_array_equal(segmenter(picture, vocabulary).labels, want)


def test_closing_in_the_middle_of_a_stream_says_so(
    bundle: Bundle, host: HostMachine, picture: ImageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice(host)
    monkeypatch.setattr(choose, "_opener", lambda name, cache: opener_of(device))
    made = Segmenter(bundle, "onnxruntime-cuda", device=device, cache=None)
    stream = made.stream(frames(picture, 4, []), made.vocabulary(NAMES[:2]))
    next(stream)
    made.close()
    with pytest.raises(EscNetError, match="closed"):
        next(stream)
    assert not device.open


# Choosing


@pytest.fixture
def opened(
    monkeypatch: pytest.MonkeyPatch, host: HostMachine
) -> Callable[[dict[str, Exception]], HostDevice]:
    """Pretends that there is a GPU on which some backends fail to open."""

    def pretend(failing: dict[str, Exception]) -> HostDevice:
        device = HostDevice(host)

        def opener(name: str, cache: Path | None) -> choose.Opener:
            if name in failing:
                raise failing[name]
            return opener_of(device)

        monkeypatch.setattr(choose, "_opener", opener)
        return device

    return pretend


def test_auto_takes_the_fastest_that_fits_and_says_why_not_the_others(
    bundle: Bundle,
    opened: Callable[[dict[str, Exception]], HostDevice],
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = opened(
        {"tensorrt": BackendError("it is not installed"), "tensorrt-rtx": BackendError("nor this")}
    )
    with caplog.at_level(logging.INFO):
        chosen = choose.choose_backend(bundle, "auto", device=device)
    assert chosen.device is not None
    chosen.close()
    assert not device.open
    [record] = [record for record in caplog.records if "'auto' chose" in record.getMessage()]
    assert "not tensorrt: it is not installed; not tensorrt-rtx: nor this" in record.getMessage()


def test_auto_on_the_cpu_beside_a_gpu_is_a_warning(
    bundle: Bundle,
    opened: Callable[[dict[str, Exception]], HostDevice],
    caplog: pytest.LogCaptureFixture,
) -> None:
    every = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
    device = opened({name: DeviceError(f"no {name} here") for name in every})
    with caplog.at_level(logging.INFO):
        chosen = choose.choose_backend(bundle, "auto", device=device)
    chosen.close()
    assert chosen.device is None
    [record] = [record for record in caplog.records if "'auto' chose" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert all(f"no {name} here" in record.getMessage() for name in every)


class Unstarted:
    """A driver's library that does not start."""

    def __init__(self, status: int) -> None:
        self._status = status

    def cuDriverGetVersion(self, out: Any) -> int:
        return 0

    def cuInit(self, flags: int) -> int:
        return self._status


@pytest.mark.parametrize(
    ("status", "level", "reason"),
    [
        (803, logging.WARNING, "restart after an update"),
        (999, logging.WARNING, "cuInit returns 999"),
        (100, logging.INFO, "there is no NVIDIA GPU with a driver"),
        (34, logging.INFO, "there is no NVIDIA GPU with a driver"),
    ],
)
def test_auto_on_the_cpu_beside_a_broken_driver_is_a_warning_too(
    bundle: Bundle,
    status: int,
    level: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("escnet_runtime.nvidia.ctypes.CDLL", lambda _: Unstarted(status))
    monkeypatch.setattr(choose, "_on_the_cpu", lambda *_: pretended())
    with caplog.at_level(logging.INFO):
        choose.choose_backend(bundle, "auto").close()
    [record] = [record for record in caplog.records if "'auto' chose" in record.getMessage()]
    assert record.levelno == level
    assert reason in record.getMessage()


def pretended() -> choose.Chosen:
    """Something on the CPU."""
    backend: Any = SimpleNamespace(name="onnxruntime", description="made up")
    return choose.Chosen(backend=backend, device=None, owned=ExitStack())


@pytest.mark.parametrize("damage", [BundleFormatError, BundleIntegrityError])
def test_auto_goes_on_from_damaged_engines_with_a_warning(
    bundle: Bundle,
    host: HostMachine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: type[BundleError],
) -> None:
    device = HostDevice(host)

    def opener(name: str, cache: Path | None) -> choose.Opener:
        def damaged(*_: Any) -> Any:
            raise damage(f"The engines of {name} are damaged")

        return opener_of(device) if name == "onnxruntime-cuda" else damaged

    monkeypatch.setattr(choose, "_opener", opener)
    with caplog.at_level(logging.INFO):
        chosen = choose.choose_backend(bundle, "auto", device=device)
    assert chosen.device is not None
    chosen.close()
    [record] = [record for record in caplog.records if "'auto' chose" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "not tensorrt: The engines of tensorrt are damaged" in record.getMessage()
    with pytest.raises(damage, match="The engines of tensorrt are damaged"):
        choose.choose_backend(bundle, "tensorrt", device=device)
    assert not device.open


def test_engines_that_were_changed_do_not_stop_auto(
    bundle_copy: Path, host: HostMachine, caplog: pytest.LogCaptureFixture
) -> None:
    """A real folder with a record that is none; only where its library is installed."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX's bindings")
    folder = bundle_copy / "engines" / "tensorrt-rtx-sm_89"
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text("{}", encoding="utf-8")
    with HostDevice(host) as device, caplog.at_level(logging.INFO):
        opened = Bundle.open(bundle_copy)
        chosen = choose.choose_backend(opened, "auto", device=device)
        chosen.close()
        with pytest.raises(BundleFormatError, match="Rebuild them: escnet-build"):
            choose.choose_backend(opened, "tensorrt-rtx", device=device)
        assert not device.open
    assert "not tensorrt-rtx: The engines" in caplog.text


class WithoutLibraries:
    """ONNX Runtime, whose CUDA provider is compiled in and does not start: sessions get the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, *_: Any, **options: Any) -> Any:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_provider_that_cannot_start_is_found_out_before_the_first_image(
    tiny_bundle: Path,
    host: HostMachine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = HostDevice(host)
    monkeypatch.setattr("escnet_runtime.gpu.onnxruntime.ort", WithoutLibraries())
    with caplog.at_level(logging.INFO):
        chosen = choose.choose_backend(Bundle.open(tiny_bundle), "auto", device=device)
    chosen.close()
    assert (chosen.device, chosen.backend.name) == (None, "onnxruntime")
    [record] = [record for record in caplog.records if "'auto' chose" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "not onnxruntime-cuda: ONNX Runtime" in record.getMessage()
    with pytest.raises(BackendError, match="has the CUDA provider and cannot start it"):
        Segmenter(tiny_bundle, "onnxruntime-cuda", device=device, cache=None)
    assert not device.open


class WithoutBfloat16(WithoutLibraries):
    """ONNX Runtime, whose CUDA provider starts, and lacks bfloat16 for an operator of one graph."""

    def InferenceSession(self, path: str, *_: Any, **options: Any) -> Any:
        if Path(path).stem == "decoder":
            raise RuntimeError("Could not find an implementation for DepthToSpace(13)")
        return WithTheProvider(super().InferenceSession(path))


class WithTheProvider:
    """A session that says that it runs on CUDA."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_an_operator_without_bfloat16_is_found_out_before_the_first_image(
    tiny_bundle: Path,
    host: HostMachine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = HostDevice(host)
    monkeypatch.setattr("escnet_runtime.gpu.onnxruntime.ort", WithoutBfloat16())
    files_of = choose._files

    def as_bf16(bundle: Bundle) -> dict[str, GraphFile]:
        return {n: replace(f, precision=Precision.BF16) for n, f in files_of(bundle).items()}

    monkeypatch.setattr(choose, "_files", as_bf16)
    opened = Bundle.open(tiny_bundle)
    with caplog.at_level(logging.INFO):
        chosen = choose.choose_backend(opened, "auto", device=device)
    chosen.close()
    assert chosen.device is None
    [record] = [record for record in caplog.records if "'auto' chose" in record.getMessage()]
    assert "cannot load graph 'decoder'" in record.getMessage()
    assert "Could not find an implementation for DepthToSpace" in record.getMessage()
    with pytest.raises(BackendError, match="graph 'decoder'"):
        choose.choose_backend(opened, "onnxruntime-cuda", device=device)
    assert not device.open


def test_what_was_asked_for_by_name_is_never_replaced(
    bundle: Bundle, opened: Callable[[dict[str, Exception]], HostDevice]
) -> None:
    device = opened({"tensorrt": BackendError("it is not installed")})
    with pytest.raises(BackendError, match="it is not installed"):
        Segmenter(bundle, "tensorrt", device=device)
    assert not device.open
