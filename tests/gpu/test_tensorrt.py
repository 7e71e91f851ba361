"""Engines on a made-up TensorRT: contexts, profiles, shared scratch, one CUDA graph, failures."""

import gc
import inspect
import json
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from escnet_runtime.errors import BackendError, BundleError, OutOfDeviceMemory
from escnet_runtime.frames import Nv12Frame
from escnet_runtime.gpu.backend import Binding
from escnet_runtime.gpu.bridge import BridgedGraphs
from escnet_runtime.gpu.pipeline import DevicePipeline
from escnet_runtime.gpu.pixels import frame_pixels
from escnet_runtime.gpu.tensorrt import EngineGraphs
from escnet_runtime.images import ImageArray
from escnet_runtime.libraries import open_bindings
from escnet_runtime.manifest import Manifest
from tests.device.host_device import HostDevice
from tests.engines.surface import SURFACES, require_calls, takes
from tests.gpu.conftest import Rig
from tests.gpu.fake_trt import (
    CLASSES,
    SCRATCH,
    FakeTrt,
    FakeTrtRtx,
    made_up_record,
    runtime_calls,
)
from tests.gpu.made_up import MadeUpGraphs, OnHost
from tests.gpu.test_pipeline import assert_same
from tests.kernels.machines import HostMachine
from tests.runtime.forked import exit_status_of_a_child

Floats = npt.NDArray[np.float32]


class Engines:
    """A pipeline over the made-up library."""

    def __init__(
        self,
        manifest: Manifest,
        host: HostMachine,
        folder: Path,
        chunks: tuple[int, ...] = (8,),
        library: type[FakeTrt] = FakeTrt,
        cache: Path | None = None,
        total: int = 1 << 30,
    ) -> None:
        self.device = HostDevice(host, total=total)
        self.trt = library(manifest, self.device)
        stream = self.device.stream()
        self.trt.graphs = MadeUpGraphs(manifest, stream, self.device)
        files = {name: folder / f"{name}.engine" for name in manifest.stages}
        for name, path in files.items():
            path.write_text(json.dumps(name), encoding="utf-8")
        self.files = files
        self.backend = EngineGraphs(
            self.trt,
            made_up_record(manifest, chunks),
            files,
            manifest.stages,
            self.device,
            stream,
            cache=cache,
        )
        self.pipeline = DevicePipeline(
            self.device, self.backend, manifest, chunk=self.backend.most_rows
        )
        self.rig = Rig(manifest, self.device, self.trt.graphs, self.pipeline)


@pytest.fixture
def engines(made_up: Manifest, host: HostMachine, tmp_path: Path) -> Engines:
    """With a profile for 8 categories."""
    return Engines(made_up, host, tmp_path)


@pytest.mark.parametrize("categories", [1, 5, 8, 13, 30])
def test_pictures_are_those_of_the_pipeline_on_the_cpu(
    categories: int, engines: Engines, image: ImageArray, text: Floats
) -> None:
    words = text[:categories]
    for pixels in (image, image // 2, image[:6]):
        assert_same(engines.rig.picture(pixels, words), engines.rig.expected(pixels, words))
    assert engines.device.calls("capture")
    assert engines.backend.description == "TensorRT 11.4.0"


def test_a_captured_image_has_the_kernels_of_its_shapes(
    made_up: Manifest, host: HostMachine, tmp_path: Path, image: ImageArray, text: Floats
) -> None:
    """TensorRT-RTX compiles them in the background if it may: too late for a capture."""
    engines = Engines(made_up, host, tmp_path, library=FakeTrtRtx)
    assert_same(engines.rig.picture(image, text[:5]), engines.rig.expected(image, text[:5]))
    assert engines.device.calls("capture")
    assert engines.trt.specialized == {"EAGER"}


def rtx(made_up: Manifest, host: HostMachine, folder: Path, driver: str = "13.0") -> Engines:
    """With a cache, as another process would have it."""
    engines = Engines(made_up, host, folder, library=FakeTrtRtx, cache=folder / "cache")
    assert isinstance(engines.trt, FakeTrtRtx)
    engines.trt.driver = driver
    return engines


def test_the_next_process_finds_what_was_compiled_on_the_device(
    made_up: Manifest, host: HostMachine, tmp_path: Path, image: ImageArray, text: Floats
) -> None:
    compiled = []
    for driver in ("13.0", "13.0", "13.1", "13.1"):
        engines = rtx(made_up, host, tmp_path, driver)
        assert_same(engines.rig.picture(image, text[:5]), engines.rig.expected(image, text[:5]))
        engines.pipeline.close()
        engines.backend.close()
        assert isinstance(engines.trt, FakeTrtRtx)
        compiled.append(sorted(set(engines.trt.compiled)))
        assert not engines.trt.freed_elsewhere
    first, again, other_driver, once_more = compiled
    assert "decoder" in first
    assert other_driver == first  # what is of another driver is refused
    assert again == once_more == []


def test_without_a_cache_folder_nothing_is_kept(
    made_up: Manifest, host: HostMachine, tmp_path: Path, image: ImageArray, text: Floats
) -> None:
    engines = Engines(made_up, host, tmp_path, library=FakeTrtRtx)
    before = set(tmp_path.iterdir())
    engines.rig.picture(image, text[:5])
    engines.backend.close()
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("call", ["create_runtime_cache", "set_runtime_cache", "serialize"])
def test_a_library_whose_cache_fails_runs_without_it(
    call: str,
    made_up: Manifest,
    host: HostMachine,
    tmp_path: Path,
    image: ImageArray,
    text: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such luck")

    owner = "IRuntimeCache" if call == "serialize" else "IRuntimeConfig"
    monkeypatch.setattr(getattr(CLASSES, owner), call, broken)
    engines = rtx(made_up, host, tmp_path)
    assert_same(engines.rig.picture(image, text[:5]), engines.rig.expected(image, text[:5]))
    engines.backend.close()
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.onnx"))


def test_an_image_is_one_upload_one_graph_and_one_download(
    engines: Engines, image: ImageArray, text: Floats
) -> None:
    words = text[:13]
    engines.rig.picture(image, words)
    engines.device.log.clear()
    engines.rig.picture(image, words)
    names = [one.name for one in engines.device.log if one.name not in ("record", "wait")]
    assert names == ["upload", "launch", "graph", "copy", "download", "synchronize"]


def test_windows_are_one_upload_one_graph_and_one_download_too(
    engines: Engines, image: ImageArray, text: Floats
) -> None:
    words = text[:13]
    want = engines.rig.expected_in_windows(image, words)
    assert_same(engines.rig.picture(image, words, sliding=True), want)
    engines.device.log.clear()
    assert_same(engines.rig.picture(image, words, sliding=True), want)
    names = [one.name for one in engines.device.log if one.name not in ("record", "wait")]
    assert names == ["upload", "launch", "launch", "graph", "copy", "download", "synchronize"]


def test_a_frame_in_nv12_is_one_upload_one_graph_and_one_download_too(
    engines: Engines, text: Floats
) -> None:
    random = np.random.default_rng(1)
    frame = Nv12Frame(
        luma=random.integers(0, 256, (12, 10), np.uint8),
        chroma=random.integers(0, 256, (6, 10), np.uint8),
    )
    pixels, words = frame_pixels(frame), text[:13]
    engines.pipeline.finish(engines.pipeline.submit(pixels, words))
    engines.device.log.clear()
    picture = engines.pipeline.finish(engines.pipeline.submit(pixels, words))
    assert_same(picture, engines.rig.expected(frame.rgb(), words))
    names = [one.name for one in engines.device.log if one.name not in ("record", "wait")]
    assert names == ["upload", "launch", "graph", "copy", "launch", "download", "synchronize"]


def test_the_scratch_of_all_engines_is_one_place_of_the_arena(
    engines: Engines, made_up: Manifest
) -> None:
    plan = engines.pipeline.plan(8, (11, 9))
    [row] = [row for row in plan.rows if row.name == "scratch"]
    assert row.bytes == SCRATCH
    graphs = len(made_up.stages) - 1  # all but the text encoder
    assert engines.backend.resident_bytes == 100 * graphs
    assert plan.backend_bytes >= 100 * graphs


def test_the_profile_with_the_least_room_is_taken(
    made_up: Manifest, host: HostMachine, tmp_path: Path, image: ImageArray, text: Floats
) -> None:
    engines = Engines(made_up, host, tmp_path, chunks=(4, 16))
    assert engines.backend.most_rows == 16
    engines.rig.picture(image, text[:20])  # 24 rows, in chunks of 12
    chosen = {rows: profile for graph, shapes, profile in engines.trt.ran for rows in [shapes]}
    sizes = {dict(shapes)["text"][0]: p for shapes, p in chosen.items() if "text" in dict(shapes)}
    assert sizes == {12: 1}
    engines.pipeline.chunk = 4
    engines.trt.ran.clear()
    assert_same(engines.rig.picture(image, text[:3]), engines.rig.expected(image, text[:3]))
    assert {profile for graph, shapes, profile in engines.trt.ran if shapes} == {0}


def test_more_categories_than_an_engine_takes_are_refused(engines: Engines) -> None:
    with pytest.raises(BackendError, match=r"takes no \{'n': 9\}; its profiles end at"):
        engines.backend._profile("correlation", (("text", (9, 6)),))


def test_an_engine_that_is_none_says_what_the_library_said(engines: Engines) -> None:
    engines.files["decoder"].write_bytes(b"\0\0")
    with pytest.raises(BackendError, match="'decoder': magic tag does not match"):
        engines.pipeline.plan(8, (11, 9))


class Unstarted(FakeTrt):
    """Where CUDA does not start: the library warns of it and gives no runtime."""

    def Runtime(self, logger: Any) -> Any:
        logger.log(self.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def test_a_library_that_does_not_start_says_why(
    made_up: Manifest, host: HostMachine, tmp_path: Path
) -> None:
    """As an error of ours, so that "auto" goes on to the next backend."""
    with pytest.raises(BackendError, match=r"TensorRT 11\.4\.0 cannot start, .* with error: 35"):
        Engines(made_up, host, tmp_path, library=Unstarted)


def test_an_engine_of_a_later_build_is_not_run(engines: Engines) -> None:
    """It would load, beside those of the build that was compared with its record."""
    path = engines.files["decoder"]
    path.write_text(json.dumps("decoder") + " ", encoding="utf-8")
    with pytest.raises(BundleError, match=r"decoder\.engine is another one now"):
        engines.pipeline.plan(8, (11, 9))


def test_a_failing_engine_is_named_and_the_next_call_works(
    engines: Engines, image: ImageArray, text: Floats
) -> None:
    engines.trt.broken["esc1_sam"] = "an illegal memory access"
    with pytest.raises(BackendError, match=r"'esc1_sam' failed in TensorRT 11\.4\.0: an illegal"):
        engines.rig.picture(image, text[:5])
    engines.trt.broken.clear()
    assert_same(engines.rig.picture(image, text[:5]), engines.rig.expected(image, text[:5]))


def test_a_scratch_that_is_refused_is_noticed(engines: Engines) -> None:
    """Though the call says nothing, and a graph would run in the memory that it had before."""
    engines.pipeline.plan(8, (11, 9))
    stage = engines.backend._stages["image_encoder"]
    with engines.device.allocate(100_000) as memory:

        def bound(scratch: int) -> Callable[[], None]:
            at = iter(range(memory.address, memory.address + 100_000, 8192))
            inputs, outputs = (
                {
                    port.name: Binding(
                        next(at), port.dtype, tuple(1 if a == "b" else int(a) for a in port.shape)
                    )
                    for port in ports
                }
                for ports in (stage.inputs, stage.outputs)
            )
            return engines.backend.bind("image_encoder", inputs, outputs, scratch=scratch)

        bound(memory.address + 90_112)()
        with pytest.raises(BackendError, match=r"refuses the scratch at .*512 byte boundary"):
            bound(memory.address + 90_112 + 256)()
        engines.backend.stream().synchronize()


def test_the_bridge_gives_a_scratch_that_is_taken(engines: Engines, made_up: Manifest) -> None:
    bridge = BridgedGraphs(
        engines.device, engines.backend, made_up, make_room=engines.pipeline.make_room
    )
    got = bridge.run("text_encoder", {"tokens": np.ones((3, 7), np.int32)})
    want = OnHost(made_up).run("text_encoder", {"tokens": np.ones((3, 7), np.int32)})
    np.testing.assert_array_equal(got["embeddings"], want["embeddings"])


def test_a_failure_has_the_reasons_that_were_given_for_it(
    engines: Engines, image: ImageArray, text: Floats
) -> None:
    """What was said before, and came to nothing, decides nothing."""
    engines.rig.picture(image, text[:5])
    engines.trt.say("Cuda Runtime (out of memory), of which nothing came")
    engines.trt.broken["esc1_sam"] = "an illegal memory access"
    with pytest.raises(BackendError, match=r"'esc1_sam' failed in TensorRT 11\.4\.0: an illegal"):
        engines.rig.picture(image[:5], text[:5])
    engines.trt.broken["esc1_sam"] = ""
    with pytest.raises(BackendError, match="it gives no reason"):
        engines.rig.picture(image[:6], text[:5])


def test_what_the_library_says_does_not_pile_up(engines: Engines) -> None:
    """Also while nothing runs, and from threads of its own."""

    def say() -> None:
        for number in range(500):
            engines.trt.say(f"number {number}")

    engines.backend._said.clear()
    threads = [threading.Thread(target=say) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engines.backend._said.errors()[0] == "number 0"
    assert len(engines.backend._said.errors()) == 2


def test_a_device_that_was_closed_too_early_does_not_keep_from_closing(engines: Engines) -> None:
    engines.pipeline.plan(8, (11, 9))
    engines.device.close()
    engines.pipeline.close()
    engines.backend.close()
    with pytest.raises(BackendError, match="closed"):
        engines.backend.load("decoder")


def test_contexts_are_freed_in_the_context_of_their_device(
    engines: Engines, image: ImageArray, text: Floats
) -> None:
    """Also those of a failure, whose calls an exception keeps."""
    engines.trt.broken["esc1_sam"] = "out of memory"
    with pytest.raises(OutOfDeviceMemory) as caught:
        engines.rig.picture(image, text[:5])
    assert engines.trt.ran
    engines.pipeline.close()
    del caught
    gc.collect()
    assert not engines.trt.freed_elsewhere


def test_what_was_bound_to_a_released_graph_says_so(engines: Engines) -> None:
    engines.pipeline.plan(8, (11, 9))
    [(ready)] = engines.pipeline._programs.values()
    engines.backend.release("decoder")
    with pytest.raises(BackendError, match="'decoder' was released"):
        ready.program.enqueue()


def test_out_of_memory_is_told_from_other_failures(
    engines: Engines, image: ImageArray, text: Floats
) -> None:
    engines.trt.broken["esc1_sam"] = "Cuda Runtime (out of memory)"
    with pytest.raises(OutOfDeviceMemory, match="smallest chunk"):
        engines.rig.picture(image, text[:5])
    assert engines.pipeline.chunk == 4


def test_closing_frees_everything(engines: Engines, image: ImageArray, text: Floats) -> None:
    engines.rig.picture(image, text[:5])
    engines.pipeline.close()
    assert [one.kind for one in engines.device.open] == ["stream"]
    gc.collect()
    assert not engines.trt.freed_elsewhere
    with pytest.raises(BackendError, match="closed"):
        engines.backend.load("decoder")


def test_the_library_has_no_logger_that_is_gone(made_up: Manifest, host: HostMachine) -> None:
    """It keeps the address of the first one as long as there is any runtime."""
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX's bindings")
    device, record = HostDevice(host), made_up_record(made_up, (8,))
    first, second = (
        EngineGraphs(real, record, {}, made_up.stages, device, device.stream()) for _ in range(2)
    )
    logger = weakref.ref(first._said.logger)
    first.close()
    del first
    gc.collect()
    assert logger() is not None
    second.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_child_frees_no_part_of_the_library(
    made_up: Manifest, host: HostMachine, tmp_path: Path, image: ImageArray, text: Floats
) -> None:
    """Its destructors would call CUDA, which does not work there."""
    held = [Engines(made_up, host, tmp_path, library=FakeTrtRtx, cache=tmp_path / "cache")]
    held[0].rig.picture(image, text[:5])
    backend = held[0].backend
    kept = [weakref.ref(one) for one in backend._engines.values()]
    kept += [weakref.ref(one) for one in backend._contexts.values()]
    kept.append(weakref.ref(backend._runtime))
    assert backend._compiled is not None
    kept.append(weakref.ref(backend._compiled._cache))
    del backend

    def drop() -> None:
        held.clear()
        gc.collect()
        assert all(one() is not None for one in kept)

    assert exit_status_of_a_child(drop) == 0
    held[0].pipeline.close()
    held.clear()
    gc.collect()
    assert all(one() is None for one in kept)


def test_the_made_up_library_has_the_calls_of_the_real_one() -> None:
    """So what the adapter calls exists, with as many arguments, in the bindings here."""
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX's bindings")
    assert open_bindings("tensorrt-rtx") is real
    checked = 0
    for name, ours in vars(CLASSES).items():
        theirs = getattr(real, name)
        for member, value in vars(ours).items():
            if member.startswith("_"):
                continue
            assert hasattr(theirs, member), f"{name}.{member}"
            if inspect.isfunction(value):
                count = len(inspect.signature(value).parameters) - 1
                lines = _signatures(getattr(theirs, member))
                assert takes(lines, count), f"{name}.{member} with {count}: {lines}"
                checked += 1
    assert checked == 13
    assert takes(_signatures(real.Runtime.__init__), 1)
    assert "USER_MANAGED" in real.ExecutionContextAllocationStrategy.__members__
    assert "EAGER" in real.DynamicShapesKernelSpecializationStrategy.__members__
    assert {"ERROR", "INTERNAL_ERROR", "WARNING"} <= real.ILogger.Severity.__members__.keys()


@pytest.mark.parametrize("file", sorted(path.name for path in SURFACES.glob("*.json")))
def test_tensorrt_has_the_calls_too(file: str) -> None:
    """The bindings of TensorRT 10.3, 10.12, 10.16 and 11.4, as read off their wheels."""
    document: dict[str, Any] = json.loads((SURFACES / file).read_text(encoding="utf-8"))
    require_calls(document["surface"], runtime_calls(rtx=False))


def _signatures(function: Any) -> str:
    from tests.engines.surface import _signatures as signatures

    return "\n".join(signatures(function))


def test_a_library_that_is_not_installed_names_what_to_install() -> None:
    try:
        import tensorrt  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(BackendError, match=r"needs the Python package tensorrt.*\[tensorrt\]"):
            open_bindings("tensorrt")
    else:
        pytest.skip("TensorRT is installed here")


def test_what_would_fit_counts_the_scratch_of_the_engines(
    made_up: Manifest,
    host: HostMachine,
    tmp_path: Path,
    image: ImageArray,
    text: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.gpu.fake_trt.SCRATCH", 200_000)
    monkeypatch.setattr("tests.gpu.fake_trt._Engine.device_memory_size_v2", 200_000)
    enough = Engines(made_up, host, tmp_path, (4,)).pipeline.plan(64, (11, 9)).total_bytes
    engines = Engines(made_up, host, tmp_path, (4,), total=enough + 40_000)
    with pytest.raises(OutOfDeviceMemory) as caught:
        engines.rig.picture(image, text[:300])
    number = int(str(caught.value).split("about ")[1].split()[0])
    assert 0 < number < 300
    words = text[:number]
    assert_same(engines.rig.picture(image, words), engines.rig.expected(image, words))
