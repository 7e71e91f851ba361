"""The compilers: which GPUs they take, what is said where one is missing, how far they are."""

import platform
import sys
from types import ModuleType
from typing import Any, cast

import pytest

from escnet_engines import Library, open_library
from escnet_engines.library import Job
from escnet_engines.monitor import BuildState
from escnet_engines.targets import choose_targets, require_arithmetic
from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import AxisRange
from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.manifest import Precision


class _Compiler:
    """As much of a library as the choice of GPUs asks for."""

    backend = "tensorrt"
    version = "11.4"
    compiles_ahead = False

    def targets(self) -> tuple[str, ...]:
        return ()


TENSORRT = cast(Library, _Compiler())


def test_rtx_knows_its_gpus(rtx: Library) -> None:
    known = rtx.targets()
    assert {"sm_86", "sm_89", "sm_120"} <= set(known)
    assert "sm_75" not in known  # it has no float32 products there
    assert choose_targets(rtx, "sm_120, sm_86,sm_120", ()) == ("sm_86", "sm_120")
    assert choose_targets(rtx, "auto", ("sm_89",)) == ("sm_89",)


@pytest.mark.parametrize(
    ("wanted", "here", "error", "message"),
    [
        ("auto", (), BackendError, "no NVIDIA GPU is visible; name the GPUs .*--target sm_86"),
        ("auto", ("sm_90",), InputError, "for sm_90; it does for sm_80"),
        ("sm_87", (), InputError, "sm_87; .* of a Jetson .* use --backend tensorrt on the mach"),
        ("auto", ("sm_75",), InputError, "does not compile these graphs for sm_75; it does for"),
        ("sm_75,sm_86", (), InputError, "does not compile these graphs for sm_75; it does for"),
        ("sm_86,sm_99", (), InputError, "does not compile these graphs for sm_99"),
        ("rtx3090", (), InputError, "--target has 'rtx3090'; expected auto"),
        ("", (), InputError, "--target has ''"),
        ("sm_86,", (), InputError, "--target has ''"),
        ("auto,sm_86", (), InputError, "--target has 'auto'"),
    ],
)
def test_gpus_that_rtx_does_not_compile_for(
    wanted: str, here: tuple[str, ...], error: type[Exception], message: str, rtx: Library
) -> None:
    with pytest.raises(error, match=message):
        choose_targets(rtx, wanted, here)


def test_tensorrt_compiles_for_the_gpu_that_is_here() -> None:
    assert choose_targets(TENSORRT, "auto", ("sm_90",)) == ("sm_90",)
    assert choose_targets(TENSORRT, "sm_90", ("sm_90",)) == ("sm_90",)
    with pytest.raises(InputError, match="for the GPU in this machine, sm_90, not for sm_86"):
        choose_targets(TENSORRT, "sm_86", ("sm_90",))
    with pytest.raises(BackendError, match=r"no NVIDIA GPU is visible; .*tensorrt-rtx"):
        choose_targets(TENSORRT, "sm_86", ())
    with pytest.raises(InputError, match=r"not for sm_87; .*Jetson's engines are built on the Jet"):
        choose_targets(TENSORRT, "sm_87", ("sm_89",))


def test_bf16_needs_ampere_where_turing_is_here() -> None:
    targets = choose_targets(TENSORRT, "auto", ("sm_75",))
    with pytest.raises(InputError, match=r"^sm_75 cannot compute in bf16, which needs sm_80"):
        require_arithmetic(targets, [Precision.BF16])


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"package tensorrt, .*install escnet-engines\[tensorrt"):
        open_library("tensorrt")


def test_a_jetson_has_tensorrt_where_an_environment_does_not_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _hide(monkeypatch, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(BackendError, match=r"JetPack's own: .*--system-site-packages"):
        open_library("tensorrt")
    _hide(monkeypatch, "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(BackendError) as caught:
        open_library("tensorrt-rtx")
    assert "Jetson" not in str(caught.value)


def test_an_old_library_is_refused_and_jetpacks_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT 10.3 is JetPack 6's: only its version is asked for."""

    def opened(version: str) -> str:
        _hide(monkeypatch, "tensorrt")
        library: Any = ModuleType("tensorrt")
        library.__version__ = version
        library.ILogger = type("ILogger", (), {"Severity": _Severity})
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        return open_library("tensorrt").version

    with pytest.raises(BackendError, match=r"in version 10\.2\.0, expected 10\.3 or newer"):
        opened("10.2.0")
    for version, warned in (("10.12.0.36", False), ("11.0.0", False), ("10.3.0.30", True)):
        assert opened(version) == version
        assert ("by best effort: 10.12 is the first" in caplog.text) == warned


class _Severity:
    ERROR, INTERNAL_ERROR, VERBOSE = 1, 0, 4


def _hide(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Our module of a library is imported anew, and forgotten afterwards."""
    module = f"escnet_runtime.libraries.{name}"
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.delitem(sys.modules, module)


def test_timings_are_kept_where_the_library_has_such_a_cache(rtx: Library, plain: Bundle) -> None:
    """TensorRT's own way, on the bindings that are here: RTX has its calls, and ignores them."""
    import tensorrt_rtx_bindings

    job = Job(
        onnx=plain.file("graphs/scores.onnx"),
        inputs=plain.manifest.stages["scores"].inputs,
        profiles=({"n": AxisRange(least=1, tuned=4, most=4)},),
        targets=(),
    )
    library = Library("tensorrt", tensorrt_rtx_bindings)
    library.use_timing_cache(b"")
    with pytest.warns(DeprecationWarning, match="no-ops"):
        assert library.compile(job, BuildState()).plan is not None
    assert library.timing_cache()
    rtx.use_timing_cache(b"")
    assert rtx.timing_cache() is None


class _Unstarted:
    """The bindings, where CUDA does not start: the library warns of it and gives no builder."""

    def __init__(self, real: ModuleType) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def Builder(self, logger: Any) -> None:
        logger.log(self.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def test_a_library_that_does_not_start_says_why(rtx: Library, plain: Bundle) -> None:
    import tensorrt_rtx_bindings

    library = Library("tensorrt", _Unstarted(tensorrt_rtx_bindings))
    scores = plain.manifest.stages["scores"]
    job = Job(onnx=plain.file(scores.file), inputs=scores.inputs, profiles=(), targets=())
    for use in (library.survey, lambda job: library.compile(job, BuildState())):
        with pytest.raises(BackendError, match=r"tensorrt .* cannot start, .* with error: 35"):
            use(job)


def test_the_version_is_that_of_the_bindings(rtx: Library) -> None:
    import tensorrt_rtx_bindings

    assert rtx.version == tensorrt_rtx_bindings.__version__


def test_how_far_a_build_is() -> None:
    state = BuildState()
    assert state.read() == (0.0, "")
    state.start("all", None, 4)
    state.start("part", "all", 2)
    assert state.read() == (0.0, "part")
    assert state.step("part", 0)
    assert state.read() == (1 / 8, "part")
    state.finish("part")
    assert state.step("all", 0)
    assert state.read() == (1 / 4, "all")
    state.start("part", "all", 2)  # again, as the builder does: it never goes back
    assert state.step("all", 2)
    assert state.read() == (3 / 4, "part")
    state.cancel()
    assert not state.step("all", 3)
    assert state.cancelled
