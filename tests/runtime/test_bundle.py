"""Opening a bundle: what is missing or changed is named, and nothing outside it is read."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path
from typing import TypeVar

import pytest

from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.errors import BundleError, BundleFormatError, BundleIntegrityError
from escnet_runtime.manifest import FileRef, Manifest
from tests.runtime.test_manifest import sample_manifest

_CONTENT = {
    "graphs/image_encoder.onnx": b"first graph",
    "graphs/decoder.onnx": bytes(3_000_000),
    "tokenizer.json": b"{}",
    "golden/image.png": b"",
    "parity.json": b"[]",
}


_Ref = TypeVar("_Ref", bound=FileRef)


def _fitted(reference: _Ref) -> _Ref:
    data = _CONTENT[reference.file]
    return dataclasses.replace(reference, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _manifest() -> Manifest:
    sample = sample_manifest()
    return dataclasses.replace(
        sample,
        stages={name: _fitted(stage) for name, stage in sample.stages.items()},
        tokenizer=_fitted(sample.tokenizer),
        golden=dataclasses.replace(
            sample.golden, files=tuple(_fitted(file) for file in sample.golden.files)
        ),
        parity=dataclasses.replace(
            sample.parity, files=tuple(_fitted(file) for file in sample.parity.files)
        ),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle whose files are all as they should be."""
    root = tmp_path / "bundle"
    for name, data in _CONTENT.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "bundle.json").write_text(_manifest().to_json(), encoding="utf-8")
    return root


def test_a_whole_bundle_opens(root: Path) -> None:
    bundle = Bundle.open(root, check="hashes")
    assert bundle.root == root
    assert bundle.manifest == _manifest()
    assert bundle.file("graphs/decoder.onnx") == root / "graphs/decoder.onnx"
    assert bundle.check_files() == []


def test_a_bundle_opens_through_a_link_and_a_relative_path(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.parent / "current").symlink_to("bundle")
    monkeypatch.chdir(root.parent)
    assert Bundle.open(Path("current")).root == root


def test_progress_counts_every_byte_once(root: Path) -> None:
    calls: list[tuple[int, int]] = []
    Bundle.open(root).check_files(lambda done, total: calls.append((done, total)))
    total = sum(map(len, _CONTENT.values()))
    assert calls[-1] == (total, total)
    assert {count for _, count in calls} == {total}
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert len(done) >= 5  # the large file reports on its way


def test_no_folder_no_manifest_and_a_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "missing")
    with pytest.raises(BundleError, match="is a file; a bundle is a folder"):
        Bundle.open(tmp_path / "file")
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        Bundle.open(tmp_path / "empty")


def test_missing_and_shortened_files_are_found_without_hashing(root: Path) -> None:
    (root / "graphs/decoder.onnx").unlink()
    (root / "tokenizer.json").write_bytes(b"{")
    with pytest.raises(BundleIntegrityError) as caught:
        Bundle.open(root, check="sizes")
    message = str(caught.value)
    assert "graphs/decoder.onnx: is missing" in message
    assert "tokenizer.json: has 1 bytes, expected 2" in message


def test_a_flipped_bit_is_found_by_hashing_only(root: Path) -> None:
    (root / "tokenizer.json").write_bytes(b"{|")
    bundle = Bundle.open(root, check="sizes")
    (problem,) = bundle.check_files()
    assert (problem.file, problem.problem) == ("tokenizer.json", "sha256")
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json: has sha256"):
        Bundle.open(root)


def test_many_problems_are_counted(root: Path) -> None:
    for name in _CONTENT:
        (root / name).write_bytes(b"something else")
    bundle = Bundle(root=root, manifest=_manifest())
    assert [problem.problem for problem in bundle.check_files()] == ["size"] * len(_CONTENT)


@pytest.mark.parametrize("link", ["file", "folder", "chain"])
def test_links_that_lead_outside_are_refused(root: Path, link: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    shutil.copy(root / "tokenizer.json", outside / "tokenizer.json")
    if link == "folder":
        shutil.copytree(root / "graphs", outside / "graphs")
        shutil.rmtree(root / "graphs")
        (root / "graphs").symlink_to(outside / "graphs")
        name = "graphs/decoder.onnx"
    else:
        name = "tokenizer.json"
        (root / name).unlink()
        (root / name).symlink_to("step" if link == "chain" else outside / name)
        if link == "chain":
            (root / "step").symlink_to("../outside/tokenizer.json")
    with pytest.raises(BundleIntegrityError, match="leads out of the bundle"):
        Bundle.open(root)
    with pytest.raises(BundleFormatError, match="leads out of the bundle"):
        Bundle(root=root, manifest=_manifest()).file(name)


def test_a_manifest_that_links_outside_is_refused(root: Path) -> None:
    (root / "bundle.json").rename(root.parent / "other.json")
    (root / "bundle.json").symlink_to("../other.json")
    with pytest.raises(BundleFormatError, match="leads out of the bundle"):
        Bundle.open(root)


def test_links_inside_are_fine(root: Path) -> None:
    (root / "parity.json").rename(root / "real.json")
    (root / "parity.json").symlink_to("real.json")
    assert Bundle.open(root, check="hashes").file("parity.json") == root / "real.json"


def test_pipes_folders_and_loops_are_refused(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    bundle = Bundle.open(root)
    for name in ("pipe", "graphs", "loop"):
        with pytest.raises(BundleFormatError):
            bundle.file(name)
    (root / "bundle.json").unlink()
    os.mkfifo(root / "bundle.json")
    with pytest.raises(BundleFormatError, match="not a plain file"):
        Bundle.open(root)


def test_unsafe_and_missing_names_are_refused(root: Path) -> None:
    bundle = Bundle.open(root)
    with pytest.raises(BundleFormatError, match="Unsafe path"):
        bundle.file("../bundle/tokenizer.json")
    with pytest.raises(BundleIntegrityError, match="missing"):
        bundle.file("graphs/nothing.onnx")
    with pytest.raises(BundleIntegrityError, match="missing"):
        bundle.file("tokenizer.json/inner")


def test_a_huge_manifest_is_refused_unread(root: Path) -> None:
    with (root / "bundle.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: reading it would exhaust the memory
    with pytest.raises(BundleFormatError, match="at most 16 MiB"):
        Bundle.open(root)


def test_a_manifest_that_is_not_text_is_refused(root: Path) -> None:
    (root / "bundle.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleFormatError, match="not UTF-8"):
        Bundle.open(root)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(BundleIntegrityError, match="Cannot read"):
        sha256_file(tmp_path / "missing")
