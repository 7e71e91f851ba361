"""Engines beside a bundle: what does not fit is named, with the command that rebuilds it."""

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from escnet_runtime.bundle import Bundle
from escnet_runtime.engine_record import AxisRange, Engine, EngineRecord, Fingerprint
from escnet_runtime.engines import find_engines, fingerprint_here
from escnet_runtime.errors import (
    BundleFormatError,
    BundleIntegrityError,
    EngineMismatchError,
)
from escnet_runtime.nvidia import Gpu, find_gpu
from tests.engines.bundles import MATMUL, STATIC, write_bundle

HERE = Fingerprint(
    backend="tensorrt-rtx",
    version="1.7.1.116",
    targets=("sm_86",),
    driver="13.0",
    os="linux-x86_64",
)
FOLDER = "tensorrt-rtx-sm_86-sm_89"
CONTENT = {"scores": b"machine code", "fuse": b"more of it"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with files in place of engines: nothing here runs them."""
    bundle = write_bundle(tmp_path / "bundle", {"scores": MATMUL, "fuse": STATIC})
    place = bundle.root / "engines" / FOLDER
    place.mkdir(parents=True)
    for name, data in CONTENT.items():
        (place / f"{name}.engine").write_bytes(data)
    (place / "engine.json").write_text(_record(bundle).to_json(), encoding="utf-8")
    return bundle


def _record(bundle: Bundle) -> EngineRecord:
    def engine(name: str) -> Engine:
        data = CONTENT[name]
        return Engine(
            file=f"{name}.engine",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            onnx_sha256=bundle.manifest.stages[name].sha256,
            profiles=({"n": AxisRange(least=1, tuned=32, most=32)},) if name == "scores" else (),
            scratch_bytes={"scores": 700, "fuse": 300}[name],
            seconds=1.0,
        )

    fingerprint = dataclasses.replace(HERE, targets=("sm_86", "sm_89"))
    return EngineRecord(fingerprint=fingerprint, engines={name: engine(name) for name in CONTENT})


def _change(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.root / "engines" / FOLDER / "engine.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_engines_that_fit_are_found(bundle: Bundle) -> None:
    record, files = find_engines(bundle, HERE)
    assert record == _record(bundle)
    assert {name: path.read_bytes() for name, path in files.items()} == CONTENT


@pytest.mark.parametrize("key", ["version", "driver", "os"])
def test_texts_of_any_length_are_no_fingerprint(bundle: Bundle, key: str) -> None:
    """Python makes no number of more than 4,300 digits."""
    _change(bundle, lambda record: record["fingerprint"].update({key: "9" * 5000}))
    with pytest.raises(BundleFormatError, match=r"at most 80 characters.*of 5,000"):
        find_engines(bundle, HERE)


def test_graphs_share_the_largest_scratch(bundle: Bundle) -> None:
    record = _record(bundle)
    assert record.scratch_bytes == 700
    unknown = dataclasses.replace(record.engines["fuse"], scratch_bytes=None)
    engines = {**record.engines, "fuse": unknown}
    assert dataclasses.replace(record, engines=engines).scratch_bytes is None


@pytest.mark.parametrize(
    ("here", "difference"),
    [
        ({"version": "1.8.0.1"}, "version is 1.7.1.116, here it is 1.8.0.1"),
        ({"os": "windows-amd64"}, "os is linux-x86_64, here it is windows-amd64"),
        ({"targets": ("sm_120",)}, "compute capability is sm_86, sm_89, here it is sm_120"),
        (
            {"targets": (), "driver": None},
            "compute capability is sm_86, sm_89, here it is no NVIDIA GPU",
        ),
        ({"driver": "12.9"}, "driver is CUDA 13.0, here it is the older CUDA 12.9"),
    ],
)
def test_a_misfit_names_the_field_and_the_command(
    here: dict[str, Any], difference: str, bundle: Bundle
) -> None:
    with pytest.raises(EngineMismatchError) as caught:
        find_engines(bundle, dataclasses.replace(HERE, **here))
    message = str(caught.value)
    assert f"engines/{FOLDER}: {difference}" in message
    assert message.endswith(f"Rebuild them: escnet-build {bundle.root} --backend tensorrt-rtx")


def test_a_newer_driver_runs_them(bundle: Bundle) -> None:
    record, _ = find_engines(bundle, dataclasses.replace(HERE, driver="13.10"))
    assert record == _record(bundle)


def test_engines_built_without_a_gpu_depend_on_no_driver(bundle: Bundle) -> None:
    _change(bundle, lambda record: record["fingerprint"].update(driver=None))
    record, _ = find_engines(bundle, dataclasses.replace(HERE, driver="12.0"))
    assert record.fingerprint.driver is None


def test_engines_of_an_exported_again_graph_are_refused(bundle: Bundle) -> None:
    _change(bundle, lambda record: record["engines"]["scores"].update(onnx_sha256="f" * 64))
    with pytest.raises(EngineMismatchError, match=r"ONNX of 'scores' had sha256 ffffffffffff"):
        find_engines(bundle, HERE)


def test_a_graph_without_an_engine_is_named(bundle: Bundle) -> None:
    _change(bundle, lambda record: record["engines"].pop("fuse"))
    with pytest.raises(EngineMismatchError, match="no engine of the graph 'fuse'"):
        find_engines(bundle, HERE)


def test_more_categories_than_the_profiles_are_refused(bundle: Bundle) -> None:
    find_engines(bundle, HERE, chunk=20)  # two groups of 16, and 32 were built
    with pytest.raises(EngineMismatchError) as caught:
        find_engines(bundle, HERE, chunk=33)
    assert "profiles of 'scores' end at 32 categories at a time, 48 are wanted" in str(caught.value)
    assert str(caught.value).endswith("--backend tensorrt-rtx --chunk 33")


def test_a_bundle_without_engines_says_how_to_build_them(bundle: Bundle) -> None:
    with pytest.raises(EngineMismatchError, match=r"no engines for tensorrt\. Build them: escnet"):
        find_engines(bundle, dataclasses.replace(HERE, backend="tensorrt"))
    shutil.rmtree(bundle.root / "engines")
    with pytest.raises(EngineMismatchError, match=r"--backend tensorrt-rtx$"):
        find_engines(bundle, HERE)


def test_of_several_folders_the_one_that_fits_is_taken(bundle: Bundle) -> None:
    engines = bundle.root / "engines"
    shutil.copytree(engines / FOLDER, engines / "tensorrt-rtx-sm_120")
    document = json.loads((engines / "tensorrt-rtx-sm_120" / "engine.json").read_text())
    document["fingerprint"]["targets"] = ["sm_120"]
    (engines / "tensorrt-rtx-sm_120" / "engine.json").write_text(json.dumps(document))
    for target, folder in (("sm_120", "tensorrt-rtx-sm_120"), ("sm_86", FOLDER)):
        _, files = find_engines(bundle, dataclasses.replace(HERE, targets=(target,)))
        assert files["scores"].parent.name == folder


def test_a_truncated_engine_is_refused(bundle: Bundle) -> None:
    os.truncate(bundle.root / "engines" / FOLDER / "scores.engine", 3)
    with pytest.raises(
        BundleIntegrityError, match=r"has 3 bytes, expected 12\. Rebuild them: escn"
    ):
        find_engines(bundle, HERE)


def test_a_flipped_byte_is_refused(bundle: Bundle) -> None:
    (bundle.root / "engines" / FOLDER / "fuse.engine").write_bytes(b"more of iT")
    with pytest.raises(BundleIntegrityError, match=r"fuse\.engine .*another sha256"):
        find_engines(bundle, HERE)


def test_a_missing_engine_is_refused(bundle: Bundle) -> None:
    (bundle.root / "engines" / FOLDER / "fuse.engine").unlink()
    with pytest.raises(BundleIntegrityError, match=r"fuse\.engine is missing"):
        find_engines(bundle, HERE)


def test_a_link_out_of_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    engine = bundle.root / "engines" / FOLDER / "fuse.engine"
    (tmp_path / "outside").write_bytes(CONTENT["fuse"])
    engine.unlink()
    engine.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleFormatError, match="leads out of the bundle"):
        find_engines(bundle, HERE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["engines"]["fuse"].update(file="../../../x"), "Unsafe path"),
        (lambda r: r["engines"]["fuse"].update(bytes=2**60), "not plausible"),
        (lambda r: r["engines"]["fuse"].update(scratch_bytes=-1), "not plausible"),
        (lambda r: r["engines"]["fuse"].update(sha256="0"), "64 hexadecimal digits"),
        (lambda r: r["engines"].update({"../x": r["engines"]["fuse"]}), "not an identifier"),
        (
            lambda r: r["engines"]["scores"]["profiles"][0]["n"].update(least=33),
            "goes from 33 over 32 to 32",
        ),
        (
            lambda r: r["engines"]["scores"]["profiles"][0]["n"].update(tuned=1, most=10**12),
            "to 1000000000000, expected rising sizes from 1 to 1,048,576",
        ),
        (lambda r: r["engines"]["fuse"].update(file="..\\x.engine"), "Unsafe path"),
        (lambda r: r["engines"]["fuse"].update(file="/etc/hostname"), "Unsafe path"),
        (lambda r: r.update(schema_version="2.0"), "has format '2.0', expected '1.1'"),
        (lambda r: r["fingerprint"].update(backend="other"), "expected one of tensorrt"),
        (lambda r: r["fingerprint"].pop("os"), "missing os"),
        (lambda r: r.update(surprise=1), "unknown key 'surprise'"),
    ],
)
def test_a_malformed_record_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, bundle: Bundle
) -> None:
    _change(bundle, change)
    with pytest.raises(BundleFormatError, match=f"{FOLDER} are damaged: .*{message}"):
        find_engines(bundle, HERE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "engine.json").write_text("{", encoding="utf-8"),
        lambda folder: (folder / "engine.json").unlink(),
        lambda folder: (folder / "fuse.engine").write_bytes(b"more of iT"),
        lambda folder: os.truncate(folder / "fuse.engine", 3),
    ],
)
def test_a_damaged_folder_keeps_nobody_from_one_that_fits(
    damage: Callable[[Path], object], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    engines = bundle.root / "engines"
    shutil.copytree(engines / FOLDER, engines / "tensorrt-rtx-sm_86")  # comes first
    damage(engines / "tensorrt-rtx-sm_86")
    _, files = find_engines(bundle, HERE)
    assert files["fuse"].parent.name == FOLDER
    assert "tensorrt-rtx-sm_86 are damaged: " in caplog.text
    with pytest.raises(EngineMismatchError, match=r"do not fit: .* Rebuild them: escnet-build"):
        find_engines(bundle, dataclasses.replace(HERE, version="1.8"))


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[1]", b" " * (4 * 2**20 + 1)])
def test_a_record_that_is_none_is_refused(data: bytes, bundle: Bundle) -> None:
    (bundle.root / "engines" / FOLDER / "engine.json").write_bytes(data)
    with pytest.raises(BundleFormatError, match=r"engine\.json"):
        find_engines(bundle, HERE)


class _Driver:
    """The driver's library, with one GPU or a failure."""

    def __init__(self, *, version: int = 13010, capability: tuple[int, int] = (8, 9)) -> None:
        self._version, self._capability = version, capability
        self.devices = 1
        self.uuid_fails = 0

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, out: Any) -> int:
        return _write(out, self._version)

    def cuDeviceGet(self, out: Any, ordinal: int) -> int:
        return _write(out, 0) if ordinal < self.devices else 101

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        return _write(out, {75: self._capability[0], 76: self._capability[1]}[attribute])

    def cuDeviceGetName(self, out: Any, length: int, device: int) -> int:
        out.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetUuid(self, out: Any, device: int) -> int:
        out.raw = bytes(range(16))
        return self.uuid_fails


def _write(out: Any, value: int) -> int:
    ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = value
    return 0


def test_the_driver_tells_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    uuid = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    gpu = Gpu(target="sm_89", driver="13.1", name="NVIDIA L4", uuid=uuid)
    assert find_gpu() == gpu
    driver.uuid_fails = 801
    assert find_gpu() == dataclasses.replace(gpu, uuid=None)
    here = fingerprint_here("tensorrt", "11.4.0")
    assert (here.targets, here.driver) == (("sm_89",), "13.1")
    driver.devices = 0
    assert find_gpu() is None


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find_gpu() is None
    here = fingerprint_here("tensorrt-rtx", "1.7.1")
    assert (here.targets, here.driver) == ((), None)
