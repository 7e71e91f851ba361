"""A bundle made elsewhere, damaged or with bad intent: refused, with a sentence that helps.

Nothing outside it is read or written, nothing large is allocated, no graph reaches a library.
"""

import io
import json
import os
import re
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

import escnet_runtime.errors
from escnet_bench.command import main as bench_main
from escnet_bench.eval_command import main as eval_main
from escnet_engines.command import main as build_main
from escnet_runtime import BackendError, EscNetError, Segmenter
from escnet_runtime.bundle import Bundle
from escnet_runtime.commands.segment import main as segment_main
from escnet_runtime.commands.verify import main as verify_main
from escnet_runtime.contract import require_contract
from escnet_runtime.engine_record import EngineRecord
from escnet_runtime.errors import BundleError, BundleFormatError, BundleIntegrityError
from escnet_runtime.golden import Golden
from escnet_runtime.manifest import Manifest
from escnet_runtime.self_contained import names_other_files
from escnet_runtime.tokenizer import Tokenizer
from tests.runtime.hostile import change_description, replace_file, signed, write_whole_bundle

Captured = pytest.CaptureFixture[str]
Change = Callable[[Path], object]
Place = tuple[str | int, ...]

SENTINEL = "sentinel"
MIB = 2**20
#: What opening a bundle may allocate at most, the bundle's own description included.
LARGEST = 32 * MIB


# --- What is watched -----------------------------------------------------------------------------

_FILE_EVENTS = {
    *("open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove"),
    *("os.rename", "os.rmdir", "os.scandir", "os.symlink", "os.truncate", "os.utime"),
    *("shutil.copyfile", "shutil.move", "shutil.rmtree"),
}
_watched: list[list[str]] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watched and event in _FILE_EVENTS:
        for argument in arguments[:2]:
            if isinstance(argument, str | bytes):
                _watched[-1].append(os.path.realpath(os.fsdecode(argument)))


sys.addaudithook(_watch)  # for the life of the process; it does nothing unless somebody watches


@contextmanager
def nothing_touched(outside: Path) -> Iterator[None]:
    """Whatever Python does to files in the block, it does to none in ``outside``."""
    before = {path: path.read_bytes() for path in outside.iterdir()}
    _watched.append([])
    try:
        yield
    finally:
        touched = _watched.pop()
    assert touched, "the audit hook saw nothing at all"
    inside = os.path.realpath(outside)
    assert not [path for path in touched if path == inside or path.startswith(inside + os.sep)]
    assert {path: path.read_bytes() for path in outside.iterdir()} == before


def test_the_watch_sees_a_file(tmp_path: Path) -> None:
    (tmp_path / SENTINEL).write_bytes(b"secret")
    for touch in (
        (tmp_path / SENTINEL).read_bytes,
        lambda: (tmp_path / SENTINEL).write_bytes(b"secret"),
        lambda: os.listdir(tmp_path),
    ):
        with pytest.raises(AssertionError), nothing_touched(tmp_path):
            touch()


# --- Bundles and commands ------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the bundle with something that must stay secret and as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in (SENTINEL, "image_encoder.onnx", "engine.json"):
        (folder / name).write_bytes(b"secret")
    return folder


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    """A bundle that is as it should be, but for its graphs."""
    return write_whole_bundle(tmp_path / "bundle")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph may reach ONNX Runtime."""

    class Never:  # a class, as it is read in types of modules that are first imported now
        def __init__(self, *_: object, **__: object) -> None:
            raise AssertionError("a graph reached ONNX Runtime")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Never)


_RTX = ("--backend", "tensorrt-rtx", "--target", "sm_86")
_FEW = ("--categories", "2", "--repeats", "1")


def run_commands(root: Path, place: Path, capsys: Captured) -> dict[str, dict[str, Any]]:
    """What each command that opens a bundle says of it, as JSON; none may succeed or crash."""
    photo, output = place / "photo.png", place / "output"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(photo)
    bundle = str(root)
    segment = [bundle, str(photo), "--classes", "cat", "--output", str(output), "--no-cache"]
    commands: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
        "escnet-verify": (verify_main, [bundle]),
        "escnet-segment": (segment_main, segment),
        "escnet-eval": (eval_main, [bundle, "shapes:heldout", "--limit", "1"]),
        "escnet-build": (build_main, [bundle, *_RTX]),
        "escnet-build --plan": (build_main, [bundle, *_RTX, "--plan"]),
        "escnet-bench builds": (bench_main, ["builds", "--bundle", bundle, *_RTX]),
        "escnet-bench footprint": (bench_main, ["footprint", "--bundle", bundle, *_FEW]),
        "escnet-bench gallery": (
            bench_main,
            ["gallery", bundle, "shapes:heldout", "--limit", "1", "--output", str(output)],
        ),
    }
    said = {}
    for name, (main, words) in commands.items():
        code = main([*words, "--json"])
        out, err = capsys.readouterr()
        assert code in (1, 2), name
        assert "Traceback" not in err, name
        said[name] = json.loads(out)
    assert not output.exists() or not list(output.iterdir())
    assert not (root / "engines").is_dir() or not list((root / "engines").glob("*/*.engine"))
    return said


def sentence(said: dict[str, Any]) -> str:
    """What a command has against a bundle."""
    if "error" in said:
        kind = getattr(escnet_runtime.errors, said["error"]["type"])
        assert issubclass(kind, BundleError)
        return str(said["error"]["message"])
    assert said["passed"] is said["verdict"]["fine"] is False
    failed = [check["detail"] for check in said["checks"] if not check["passed"]]
    assert said["verdict"]["sentence"].startswith("This bundle is not fine on this device: ")
    assert said["verdict"]["advice"]
    return "\n".join(failed)


def _flip(name: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)

    return change


def _described(*place: str | int, value: object) -> Change:
    """``bundle.json`` with another value at a place."""

    def change(root: Path) -> None:
        def put(document: Any) -> None:
            for key in place[:-1]:
                document = document[key]
            document[place[-1]] = value

        change_description(root, put)

    return change


def _link(name: str, target: str) -> Change:
    def change(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to(target)

    return change


def _pipe(root: Path) -> None:
    (root / "tokenizer.json").unlink()
    os.mkfifo(root / "tokenizer.json")


def _linked_folder(root: Path) -> None:
    shutil.rmtree(root / "graphs")
    (root / "graphs").symlink_to("../outside")


def _without(name: str) -> Change:
    return lambda root: (root / name).unlink()


def _forget_tokenizer(root: Path) -> None:
    change_description(root, lambda document: document.pop("tokenizer"))


def _forget_graph(root: Path) -> None:
    change_description(root, lambda document: document["stages"].pop("decoder"))


_PATH = ("stages", "image_encoder", "file")
_SHAPE = ("stages", "image_encoder", "inputs", 0, "shape")
_HUGE = 10**12
_UNSAFE = "Unsafe path in the bundle.*Expected a relative path.*Do not use this bundle"
_ATTACKS: dict[str, tuple[Change, str]] = {
    "flipped graph": (_flip("graphs/decoder.onnx"), "decoder.onnx: has sha256 .* expected .*again"),
    "flipped tokenizer": (_flip("tokenizer.json"), "tokenizer.json: has sha256 .*again"),
    "flipped picture": (_flip("golden/image.png"), "image.png: has sha256 .*again"),
    "flipped report": (_flip("parity.json"), "parity.json: has sha256 .*again"),
    "flipped description": (_flip("bundle.json"), "bundle.json.*again"),
    "missing graph": (_without("graphs/decoder.onnx"), "decoder.onnx: is missing.*again"),
    "missing tokenizer": (_without("tokenizer.json"), "tokenizer.json: is missing.*again"),
    "undescribed tokenizer": (_forget_tokenizer, "missing tokenizer.*again"),
    "undescribed graph": (_forget_graph, "17 graphs|has 19.*again"),
    "path up": (_described(*_PATH, value="../outside/sentinel"), _UNSAFE),
    "path up inside": (_described(*_PATH, value="graphs/../../outside/sentinel"), _UNSAFE),
    "absolute path": (_described(*_PATH, value="/etc/hostname"), _UNSAFE),
    "windows path": (_described(*_PATH, value="..\\outside\\sentinel"), _UNSAFE),
    "windows drive": (_described(*_PATH, value="C:/outside"), _UNSAFE),
    "windows device": (_described(*_PATH, value="graphs/NUL"), _UNSAFE),
    "null in path": (_described(*_PATH, value="graphs/x\0"), _UNSAFE),
    "golden path": (_described("golden", "files", 0, "file", value="../outside/sentinel"), _UNSAFE),
    "tokenizer path": (_described("tokenizer", "file", value="../outside/sentinel"), _UNSAFE),
    "link to file": (
        _link("tokenizer.json", "../outside/sentinel"),
        "tokenizer.json.*link that leads out of the bundle.*Do not use",
    ),
    "absolute link": (_link("graphs/decoder.onnx", "/etc/hostname"), "link that leads out"),
    "link to device": (_link("tokenizer.json", "/dev/zero"), "link that leads out"),
    "link to itself": (_link("tokenizer.json", "tokenizer.json"), "tokenizer.json.*unusable"),
    "linked description": (_link("bundle.json", "../outside/sentinel"), "link that leads out"),
    "linked folder": (_linked_folder, "image_encoder.onnx.*link that leads out"),
    "pipe": (_pipe, "tokenizer.json.*not a plain file"),
    "huge axis": (_described(*_SHAPE, value=["b", 3, _HUGE, 1]), f"expected 1 to .* got {_HUGE}"),
    "huge product": (_described(*_SHAPE, value=["b", 2**20, 2**20]), "elements.*again"),
    "overflowing product": (_described(*_SHAPE, value=[2**20] * 60), "elements.*again"),
    "other shape": (
        _described(*_SHAPE, value=["b", 3, 4096, 4096]),
        r"'image_encoder' has image float32 \[b, 3, 4096, 4096\].*has float32 \[b, 3, 128, 128\]",
    ),
    "other type of what travels": (
        _described("stages", "decoder", "inputs", 1, "dtype", value="float16"),
        r"'decoder' reads skip0 as float16 \[1, .*, and 'image_encoder' writes float32 \[b, ",
    ),
    "other size of what travels": (
        _described("stages", "decoder", "inputs", 1, "shape", 1, value=4096),
        r"'decoder' reads skip0 as float32 \[1, 4096, .*, and 'image_encoder' writes float32 \[b, ",
    ),
    "huge image": (_described("model", "image_size", value=2**20), "image size: expected 1 to"),
    "other image": (_described("model", "image_size", value=2048), "preprocessing makes images"),
    "huge grid": (_described("model", "grid", value=[2**10, 2**10]), "grid: expected 1 to 1,024"),
    "huge logits": (_described("model", "logits", value=[2**20, 1]), "logits: expected 1 to"),
    "many blocks": (_described("model", "blocks", value=2**20), "blocks, so 4,194,308 graphs"),
    "huge file": (_described("tokenizer", "bytes", value=2**39), "size of 'tokenizer.json'"),
    "many templates": (
        _described("constants", "templates", value=["{}"] * 5000),
        "number of templates: expected 1 to 1,024, got 5000",
    ),
}


@pytest.mark.parametrize("attack", _ATTACKS)
def test_every_command_refuses_it(
    attack: str,
    root: Path,
    outside: Path,
    no_library: None,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    change, message = _ATTACKS[attack]
    change(root)
    with nothing_touched(outside):
        said = run_commands(root, tmp_path, capsys)
        with pytest.raises(BundleError):
            Segmenter(root)
    for command, document in said.items():
        if command in _COMPILING and attack in _ONLY_RUNNING:
            continue
        text = sentence(document).replace("\n", " ")
        assert re.search(message, text), (command, text)


#: Sizes that only contradict each other: they matter to what runs the graphs, not to a compiler,
#: which reads the graph itself; the graph here is none, so it refuses that.
_COMPILING = {"escnet-build", "escnet-build --plan", "escnet-bench builds"}
_ONLY_RUNNING = {
    "undescribed graph",
    "other shape",
    "other type of what travels",
    "other size of what travels",
    "other image",
    "many blocks",
}


@pytest.mark.parametrize("attack", ["huge axis", "overflowing product", "huge grid", "many blocks"])
def test_nothing_large_is_allocated(attack: str, root: Path, no_library: None) -> None:
    change, _ = _ATTACKS[attack]
    change(root)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            Segmenter(root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LARGEST


def test_any_flipped_byte_of_any_file_is_refused(tiny_bundle: Path, bundle_copy: Path) -> None:
    names = [str(p.relative_to(tiny_bundle)) for p in tiny_bundle.rglob("*") if p.is_file()]
    assert len(names) > 20
    for name in names:
        whole = (bundle_copy / name).read_bytes()
        _flip(name)(bundle_copy)
        with pytest.raises(BundleError):
            Bundle.open(bundle_copy)
        (bundle_copy / name).write_bytes(whole)
    Bundle.open(bundle_copy)


# --- Golden files --------------------------------------------------------------------------------


def _npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def _npy(shape: str, data: bytes = b"", descr: str = "'|i1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def _png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    return bytes(data)


def _reference(**changes: object) -> Callable[[Path], bytes]:
    def made(root: Path) -> bytes:
        document = json.loads((root / "golden/reference.json").read_text(encoding="utf-8"))
        return json.dumps({**document, **changes}).encode()

    return made


_ZEROS = bytes(4 * 3 * 5 * 2)
_GOLDEN: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "huge array": (
        "prompts.npz",
        lambda _: _npz(points=_npy("(1000000, 1000000)")),
        r"points int8 .*1000000.*expected integers \[4, 3, 5, 2\]",
    ),
    "overflowing array": ("prompts.npz", lambda _: _npz(points=_npy(f"({10**30},)")), "points"),
    "deflated zeros": (
        "prompts.npz",
        lambda _: _npz(points=_npy("(4, 3, 5, 2)", bytes(64 * MIB))),
        "bytes of points, expected 120",
    ),
    "short array": ("prompts.npz", lambda _: _npz(points=_npy("(4, 3, 5, 2)")), "has 0 bytes"),
    "objects": (
        "prompts.npz",
        lambda _: _npz(points=_npy("(4, 3, 5, 2)", _ZEROS, "'|O'")),
        "points object",
    ),
    "code in the header": (
        "prompts.npz",
        lambda _: _npz(points=_npy("(__import__('os').system('false'),)")),
        "prompts.npz is unusable",
    ),
    "long header": (
        "prompts.npz",
        lambda _: _npz(points=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31)),
        "format",
    ),
    "no archive": ("prompts.npz", lambda _: b"PK\x03\x04", "prompts.npz is unusable"),
    "huge picture": ("image.png", lambda _: _png(2**30, 2**30), "declares 1,073,741,824 ×"),
    "large picture": ("image.png", lambda _: _png(12000, 12000), "declares 12,000 ×"),
    "huge labels": ("labels.png", lambda _: _png(2**20, 2**20), "declares"),
    "postscript": (
        "image.png",
        lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not a PNG",
    ),
    "other categories": ("reference.json", _reference(categories=["x"] * 9), "not the 3"),
    "long texts": (
        "reference.json",
        _reference(tokens=[[1] * 10_000] * 4),
        "texts of 10000 tokens|for 4 texts",
    ),
    "negative tokens": ("reference.json", _reference(tokens=[[-1]] * 4), "from -1|unusable|texts"),
    "huge tokens": ("reference.json", _reference(tokens=[[2**63]] * 4), "unusable|out of bounds"),
    "other texts": ("reference.json", _reference(prompts=["x", "y", "z", "w"]), "texts"),
}


@pytest.mark.parametrize("attack", _GOLDEN)
def test_golden_files_are_refused_before_they_are_read(
    attack: str, root: Path, outside: Path, no_library: None, capsys: Captured
) -> None:
    file, content, message = _GOLDEN[attack]
    replace_file(root, f"golden/{file}", content(root))
    bundle = Bundle.open(root)
    tracemalloc.start()
    try:
        with nothing_touched(outside), pytest.raises(BundleFormatError, match=message):
            Golden.load(bundle)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LARGEST
    assert verify_main([str(root), "--json"]) == 1
    assert "golden files cannot be used" in sentence(json.loads(capsys.readouterr().out))


def test_the_golden_files_of_the_fixture_are_fine(root: Path) -> None:
    Golden.load(Bundle.open(root))


# --- Graphs --------------------------------------------------------------------------------------


def _tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def _weight(location: str) -> onnx.ModelProto:
    return _model(weights=[_tensor(location)])


def _constant(location: str) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=_tensor(location))
    return _model(nodes=[node])


def _branch(location: str) -> onnx.ModelProto:
    branch = _constant(location).graph
    node = helper.make_node("If", ["x"], ["c"], then_branch=branch, else_branch=branch)
    return _model(nodes=[node])


def _function(location: str) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=_tensor(location))
    function = helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 20)])
    model = _model()
    model.functions.append(function)
    return model


def _sparse(location: str) -> onnx.ModelProto:
    model = _model()
    model.graph.sparse_initializer.add().values.CopyFrom(_tensor(location))
    return model


def _model(*, nodes: Any = (), weights: Any = (), doc: str = "") -> onnx.ModelProto:
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([*nodes], "g", [port], [port], [*weights], doc_string=doc)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("hidden", [_weight, _constant, _branch, _function, _sparse])
def test_a_graph_that_reads_other_files_is_refused(
    hidden: Callable[[str], onnx.ModelProto],
    root: Path,
    outside: Path,
    no_library: None,
    tmp_path: Path,
    capsys: Captured,
) -> None:
    replace_file(root, "graphs/decoder.onnx", hidden("../../outside/sentinel").SerializeToString())
    with nothing_touched(outside):
        said = run_commands(root, tmp_path, capsys)
    for command, document in said.items():
        text = sentence(document)
        assert "decoder.onnx: reads weights from other files" in text, (command, text)


def test_no_field_hides_behind_a_key_of_more_than_32_bits(tmp_path: Path) -> None:
    """ONNX Runtime and OpenVINO drop the bits above: to them it is field 13, the other file."""
    data = _tensor("weights.bin").SerializeToString()
    key = bytes([13 << 3 | 2])
    assert data.count(key) == 1
    hidden = data.replace(key, bytes([key[0] | 0x80, 0x80, 0x80, 0x80, 0x10]))
    model = _model(nodes=[helper.make_node("Add", ["x", "w"], ["y"])])
    model.graph.output[0].name = "y"
    graph = model.graph.SerializeToString() + _field(5, hidden)
    model.ClearField("graph")
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString() + _field(7, graph))
    (tmp_path / "weights.bin").write_bytes(np.float32(7).tobytes())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros(1, np.float32)})[0] == 7  # so it is worth a refusal
    assert names_other_files(path)


def _field(number: int, data: bytes) -> bytes:
    """A field of protobuf, of up to 16383 bytes."""
    return bytes([number << 3 | 2, len(data) & 0x7F | 0x80, len(data) >> 7]) + data


def test_the_word_alone_is_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(_model(doc="its location: here").SerializeToString())
    assert not names_other_files(path)
    path.write_bytes(_weight("w.bin").SerializeToString())
    assert names_other_files(path)
    path.write_bytes(b"")
    assert not names_other_files(path)


@settings(max_examples=60)
@given(data=st.data())
def test_no_bytes_crash_the_search_for_other_files(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.onnx"
    content = bytearray(_branch("../w").SerializeToString())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    names_other_files(path)


def test_a_graph_with_other_ports_than_described_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "graphs/correlation.onnx"
    model = onnx.load_model(str(path))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = _HUGE
    replace_file(bundle_copy, "graphs/correlation.onnx", model.SerializeToString())
    with Segmenter(bundle_copy, cache=None) as segmenter:
        vocabulary = segmenter.vocabulary(["cat"])
        with pytest.raises(BackendError, match=r"'correlation'.*(its bundle says|cannot load)"):
            segmenter(np.zeros((8, 8, 3), np.uint8), vocabulary)


# --- Tokenizers ----------------------------------------------------------------------------------


def test_a_tokenizer_with_a_regular_expression_of_its_own_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    split = document["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = "(a+)+$"  # exponential in the length of "aaaa…b"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleFormatError, match=r"does not split texts as CLIP does.*Export"):
        Tokenizer.open(path, 77)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("padding", "strategy"), {"Fixed": 10**13}, None),  # is switched off
        (("truncation", "max_length"), 10**15, None),
        (
            ("post_processor", "special_tokens", "<start_of_text>", "ids"),
            [2**32 - 1],
            "token ids above",
        ),
        (("post_processor", "special_tokens"), {}, "is not a tokenizer|frames a text"),
        (("model", "merges", 0), ["no", "such"], "is not a tokenizer"),
    ],
)
def test_a_tokenizer_that_breaks_its_library_is_refused(
    place: Place, value: object, message: str | None, bundle_copy: Path
) -> None:
    path = bundle_copy / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    if message is None:
        Tokenizer.open(path, 77).encode(["a cat"])
        return
    with pytest.raises(BundleFormatError, match=message):
        Tokenizer.open(path, 77).encode(["a cat"])


def test_a_huge_tokenizer_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(BundleFormatError, match="at most 64 MiB"):
        Tokenizer.open(path, 77)


# --- Any value anywhere --------------------------------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, _HUGE, 10**400, 1e308, -1e308, 1e-320])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["../../x", "/etc/passwd", "a\\b", "n", "CON", "{}", "\ud800", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def mutated(document: Any, data: st.DataObject) -> Any:
    """``document`` with another value at one to three places, or without what was there."""
    for _ in range(data.draw(st.integers(1, 3))):
        place = document
        while True:
            if not place:
                break
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            deeper = isinstance(place[key], dict | list) and place[key]
            if not deeper or data.draw(st.integers(0, 5)) == 0:
                if data.draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = data.draw(_JSON)
                break
            place = place[key]
    return document


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``root``, for tests that leave it as it is but for what they change back."""
    return write_whole_bundle(tmp_path_factory.mktemp("whole") / "bundle")


_FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@_FUZZ
@given(data=st.data())
def test_any_description_is_read_or_refused(data: st.DataObject, whole: Path) -> None:
    document = mutated(json.loads((whole / "bundle.json").read_text(encoding="utf-8")), data)
    try:
        text = signed(document)
    except UnicodeEncodeError:  # half a surrogate pair has no digest
        text = json.dumps(document)
    with suppress(EscNetError):
        manifest = Manifest.from_json(text)
        require_contract(manifest)
        Golden.load(Bundle(root=whole, manifest=manifest))


@_FUZZ
@given(data=st.data())
def test_any_record_of_engines_is_read_or_refused(data: st.DataObject) -> None:
    engine = {
        "file": "decoder.engine",
        "sha256": "0" * 64,
        "bytes": 3,
        "onnx_sha256": "1" * 64,
        "profiles": [{"n": {"least": 1, "tuned": 16, "most": 16}}],
        "scratch_bytes": 5,
        "seconds": 1.5,
    }
    fingerprint = {
        "backend": "tensorrt",
        "version": "11.4.0",
        "targets": ["sm_89"],
        "driver": "13.0",
        "os": "linux-x86_64",
    }
    document = {
        "schema_version": "1.1",
        "fingerprint": fingerprint,
        "engines": {"decoder": engine},
        "workspace": 1 << 20,
    }
    EngineRecord.from_json(json.dumps(document))  # what is mutated is a record
    with suppress(BundleFormatError):
        record = EngineRecord.from_json(json.dumps(mutated(document, data)))
        record.fingerprint.differences(record.fingerprint)
        record.misfits({"decoder": "1" * 64}, chunk=16)


@_FUZZ
@given(data=st.data())
def test_any_golden_reference_is_read_or_refused(data: st.DataObject, whole: Path) -> None:
    path = whole / "golden/reference.json"
    before = path.read_bytes()
    manifest = Bundle.open(whole, check="description").manifest
    document = mutated(json.loads(before), data)
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        with suppress(EscNetError):
            Golden.load(Bundle(root=whole, manifest=manifest))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("key", ["onnxruntime", "onnxruntime_minimum"])
def test_a_version_of_any_length_is_no_defect(root: Path, key: str, capsys: Captured) -> None:
    """Python makes no number of more than 4,300 digits."""
    said = {"onnxruntime": "1.18", key: "9" * 5000}
    change_description(root, lambda document: document["producer"].update(said))
    assert verify_main([str(root), "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    (library,) = [check for check in checks if check["name"] == "library"]
    assert not library["passed"]
    assert len(library["detail"]) < 500


# --- Engines -------------------------------------------------------------------------------------


def test_a_folder_of_engines_that_leads_outside_is_not_looked_into(
    root: Path, outside: Path, no_library: None, capsys: Captured
) -> None:
    (root / "engines").symlink_to("../outside")
    with nothing_touched(outside):
        assert verify_main([str(root), "--json"]) == 1
        said = json.loads(capsys.readouterr().out)
        with pytest.raises(BundleFormatError, match="leads out"):
            Bundle.open(root).folders("engines")
    check = next(check for check in said["checks"] if check["name"] == "engines")
    assert "leads out of the bundle" in check["detail"]


def test_a_missing_file_is_an_integrity_error(root: Path) -> None:
    with pytest.raises(BundleIntegrityError):
        Bundle.open(root).text("graphs/none.onnx", most=1)
