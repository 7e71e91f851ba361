"""The calls our adapter makes exist in the bindings of TensorRT 10, of 11 and of TensorRT-RTX.

They are recorded while the adapter compiles graphs with TensorRT-RTX, good ones and bad ones, along
the way that TensorRT takes.
"""

import ast
import inspect
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from escnet_engines import BuildError, Library
from escnet_engines import library as adapter
from escnet_engines import survey as reader
from escnet_engines.libraries import _OLDEST
from escnet_engines.library import Job
from escnet_engines.monitor import BuildState
from escnet_runtime.engine_record import AxisRange, Compiler
from tests.engines.bundles import MATMUL, UNREADABLE, UNSHAPEABLE, write_bundle
from tests.engines.surface import SURFACES, Recorder, require_calls, takes


def recorded_calls(backend: Compiler) -> dict[str, set[int]]:
    """ "Class.member" → numbers of arguments, of all that the adapter asks of its library."""
    import tensorrt_rtx_bindings

    calls: dict[str, set[int]] = {"DataType.itemsize": set()}  # members are not recorded
    library = Library(backend, Recorder(tensorrt_rtx_bindings, calls))
    assert library.version
    library.targets()
    library.use_timing_cache(b"")
    graphs = {"good": MATMUL, "unreadable": UNREADABLE, "unshapeable": UNSHAPEABLE}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # RTX has no timing cache
        bundle = write_bundle(Path(folder), graphs)
        for name, stage in bundle.manifest.stages.items():
            job = Job(
                onnx=bundle.file(stage.file),
                inputs=stage.inputs,
                profiles=({"n": AxisRange(least=1, tuned=4, most=4)},),
                targets=("sm_86",),
                workspace=2**30,
            )
            if name == "good":
                library.compile(job, BuildState())
                library.survey(job)
            else:
                with pytest.raises(BuildError):
                    library.compile(job, BuildState())
    return calls


@pytest.fixture(scope="module")
def tensorrt_calls(rtx: Library) -> dict[str, set[int]]:
    """What the adapter asks of TensorRT."""
    return recorded_calls("tensorrt")


def _attributes(source: str) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}


def test_the_recording_leaves_no_call_out(
    rtx: Library, tensorrt_calls: dict[str, set[int]]
) -> None:
    """Every member of the bindings that our source names was asked for."""
    import tensorrt_rtx_bindings as trt

    classes = [one for one in vars(trt).values() if isinstance(one, type)]
    members = {name for one in classes for name in dir(one) if not name.startswith("_")}
    members |= {name for name in dir(trt) if not name.startswith("_")}
    named = _attributes(inspect.getsource(adapter)) | _attributes(inspect.getsource(reader))
    used = {
        label.rpartition(".")[2] for label in (*tensorrt_calls, *recorded_calls("tensorrt-rtx"))
    }
    own = {"append", "start"}  # of a list and of the state of a build
    subclassed = {"ILogger", "IProgressMonitor", "Severity", "ERROR", "INTERNAL_ERROR", "VERBOSE"}
    enumerated = {"STRONGLY_TYPED", "TF32", "WORKSPACE", "CONSTANT", "REQUIRE_USER_ALLOCATION"}
    assert not named & members - used - own - subclassed - enumerated


@pytest.mark.parametrize("file", sorted(path.name for path in SURFACES.glob("*.json")))
def test_recorded_bindings_have_every_call(file: str, tensorrt_calls: dict[str, set[int]]) -> None:
    """The bindings of TensorRT 10.3, 10.12, 10.16 and 11.4, as read off their wheels."""
    document: dict[str, Any] = json.loads((SURFACES / file).read_text(encoding="utf-8"))
    require_calls(document["surface"], tensorrt_calls)


def test_surfaces_of_both_releases_are_there() -> None:
    versions = [
        json.loads(path.read_text(encoding="utf-8"))["version"].split(".")
        for path in SURFACES.glob("*.json")
    ]
    assert {release for release, *_ in versions} == {"10", "11"}
    assert min(tuple(map(int, version[:2])) for version in versions) == _OLDEST["tensorrt"]


@pytest.mark.parametrize(
    ("name", "backend"), [("tensorrt", "tensorrt"), ("tensorrt_rtx_bindings", "tensorrt-rtx")]
)
def test_installed_bindings_have_every_call(name: str, backend: Compiler, rtx: Library) -> None:
    from tests.engines.surface import surface_of

    module = pytest.importorskip(name, reason=f"needs {name}, which is not installed here")
    calls = recorded_calls(backend)
    require_calls(surface_of(module, sorted(calls)), calls)
    for enumeration, members in {
        "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
        "BuilderFlag": ["TF32"],
        "MemoryPoolType": ["WORKSPACE"],
        "LayerType": ["CONSTANT"],
    }.items():
        assert set(members) <= getattr(module, enumeration).__members__.keys()


def test_a_call_that_is_not_there_is_found(tensorrt_calls: dict[str, set[int]]) -> None:
    surface = dict.fromkeys(tensorrt_calls, "")
    with pytest.raises(AssertionError, match="make_coffee"):
        require_calls(surface, {**tensorrt_calls, "Builder.make_coffee": set()})
    signature = "set_timing_cache(self: X, cache: Y, ignore_mismatch: bool) -> bool"
    with pytest.raises(AssertionError, match="with 1 arguments"):
        require_calls({"a": signature}, {"a": {1}})
    assert takes("create_network(self: X, flags: typing.SupportsInt = 0) -> Y", 0)
    assert not takes("f(self: X, a: dict[str, int], b: int) -> Y", 3)
