"""Footprint of a bundle: each measurement in a process of its own, without PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from escnet_bench import footprint
from escnet_bench.footprint import FootprintRow, generated_names, measure_footprint
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import BackendError, BundleError, ImageError, InputError


@pytest.fixture(scope="module")
def row(tiny_bundle: Path) -> FootprintRow:
    """Three categories, of which two are the same, in chunks of a group; three images are timed."""
    (row,) = measure_footprint(
        tiny_bundle, [3], names=["red", "blue", "red", "green"], repeats=3, chunk=2
    )
    return row


def test_a_row_says_what_was_measured(row: FootprintRow) -> None:
    assert (row.categories, row.distinct_categories, row.chunk) == (3, 2, 16)
    assert row.image == "made up, 640×480"
    assert "ONNX Runtime" in row.backend
    assert len(row.image_seconds_each) == 3
    assert row.image_seconds == sorted(row.image_seconds_each)[1] > 0


def test_stages_add_up_to_the_image(row: FootprintRow) -> None:
    by_graph = {"image_encoder", "correlation", "sam", "fuse", "image", "text", "decoder"}
    between = {"preprocess", "prompts", "sums", "upsample_argmax", "other"}
    assert row.stages.keys() == by_graph | between
    mean = sum(row.image_seconds_each) / 3
    assert sum(row.stages.values()) == pytest.approx(mean)
    # Of the images that are timed alone: with the first, or of all together, clocks would have
    # more than the images took.
    assert 0 <= row.stages["other"] < 0.5 * mean
    assert row.prompt_share == pytest.approx(row.stages["prompts"] / mean)


def test_the_way_to_the_first_label_map_is_complete(row: FootprintRow) -> None:
    for start in (row.empty_cache, row.filled_cache):
        steps = (start.interpreter, start.imports, start.open, start.vocabulary, start.image)
        assert all(step > 0 for step in steps)
        assert start.total == pytest.approx(sum(steps))
    # The second process reads what the first has embedded.
    assert row.filled_cache.vocabulary < row.empty_cache.vocabulary


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_measured_process(tiny_bundle: Path) -> None:
    ballast = bytearray(b"x" * 2**29)  # held by this process, and no part of the measured one
    (row,) = measure_footprint(tiny_bundle, [1], repeats=1)
    assert row.peak_memory_bytes is not None
    assert row.filled_cache.peak_memory_bytes is not None
    assert 30e6 < row.filled_cache.peak_memory_bytes <= row.peak_memory_bytes < len(ballast)


def test_generated_names_are_distinct() -> None:
    names = generated_names(12_000)
    assert len(set(names)) == 12_000
    assert names[0] == "category 0001"


def test_the_measured_process_has_no_torch() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, escnet_runtime, escnet_bench.footprint; print('torch' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_an_image_of_ones_own_is_used(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "red").save(path)
    said: list[str] = []
    (row,) = measure_footprint(tiny_bundle, [1], image=path, repeats=1, step=said.append)
    assert row.image == "photo.png, 40×30"
    assert row.chunk == Bundle.open(tiny_bundle).manifest.constants.chunk
    assert said == ["1 categories, empty cache", "1 categories, filled cache"]


@pytest.mark.parametrize(("categories", "repeats"), [([0], 1), ([1], 0)])
def test_numbers_below_one_are_refused(
    tiny_bundle: Path, categories: list[int], repeats: int
) -> None:
    with pytest.raises(InputError, match="at least 1"):
        measure_footprint(tiny_bundle, categories, repeats=repeats)


def test_too_few_names_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="2 category names, 3 are asked for"):
        measure_footprint(tiny_bundle, [1, 3], names=["a", "b"])


def test_what_cannot_be_read_is_told_before_a_process_starts(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "_run", lambda *_: pytest.fail("started a process"))
    with pytest.raises(BundleError, match="no bundle"):
        measure_footprint(tmp_path / "none", [1])
    with pytest.raises(ImageError):
        measure_footprint(tiny_bundle, [1], image=tmp_path / "none.png")


def test_an_error_in_the_measured_process_is_told_here(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="'abacus' is unknown"):
        measure_footprint(tiny_bundle, [1], backend="abacus")
    with pytest.raises(InputError, match="chunk is 0"):
        measure_footprint(tiny_bundle, [1], chunk=0)


def test_a_process_that_dies_is_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = "import os, signal, sys; sys.stderr.write('last words'); sys.stderr.flush(); "
    monkeypatch.setattr(footprint, "_CHILD", dies + "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(BackendError, match=r"at 1 categories .* -9 \(out of memory\?\)") as caught:
        measure_footprint(tiny_bundle, [1])
    assert "last words" in str(caught.value)


def test_the_measured_process_imports_nothing_of_the_folder_it_is_in(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "escnet_runtime.py").write_text("raise SystemExit('of this folder')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match="'abacus' is unknown"):
        measure_footprint(tiny_bundle, [1], backend="abacus")
