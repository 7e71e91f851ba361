"""escnet-segment on real bundles: its JSON, its files, and what it says about bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import escnet_runtime
from escnet_runtime.commands import segment
from escnet_runtime.commands.segment import main
from escnet_runtime.errors import InputError
from escnet_runtime.pictures import read_label_png
from escnet_runtime.segmenter import Segmenter

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of different sizes, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in {"wide.png": (40, 90), "tall.jpg": (80, 33)}.items():
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "torn.png").write_bytes((folder / "wide.png").read_bytes()[:200])
    return folder


def answer(capsys: Captured) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_answer_is_that_of_the_library(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    image, output = photos / "wide.png", tmp_path / "new" / "results"
    words = [str(tiny_bundle), str(image), "--classes", "cat; sofa, couch; wall", "--json"]
    assert main([*words, "--output", str(output)]) == 0
    document = answer(capsys)
    assert document["backend"].startswith("ONNX Runtime")
    assert document["categories"] == 3
    assert 2**24 < document["peak_memory_bytes"] < 2**36
    assert "untrained" in document["note"]
    (entry,) = document["images"]
    assert (entry["path"], entry["width"], entry["height"]) == (str(image), 90, 40)
    assert entry["milliseconds"] > 0
    labels, names = read_label_png(entry["labels"])
    with Segmenter(tiny_bundle, cache=None) as segmenter:
        result = segmenter(image, segmenter.vocabulary(["cat", "sofa, couch", "wall"]))
    assert names == ["cat", "sofa, couch", "wall"]
    assert np.array_equal(labels, result.labels)
    assert entry["area"] == pytest.approx(result.area())
    with Image.open(entry["overlay"]) as overlay:
        assert overlay.width > 90
    assert sorted(os.listdir(output)) == ["wide_labels.png", "wide_overlay.png"]


def test_a_shortlist_is_that_of_the_library(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    names = [f"{colour} {thing}" for colour in ("red", "old") for thing in "abcdefghijk"]
    image, output = photos / "wide.png", tmp_path / "results"
    words = [str(tiny_bundle), str(image), "--classes", ", ".join(names), "--json"]
    words += ["--output", str(output)]
    with Segmenter(tiny_bundle) as segmenter:
        for option, shortlist in (("3", 3), ("auto", "auto"), (None, None)):
            more = [] if option is None else ["--shortlist", option]
            assert main([*words, *more]) == 0
            document = answer(capsys)
            assert document["shortlist"] == shortlist
            (entry,) = document["images"]
            result = segmenter(image, segmenter.vocabulary(names), shortlist=shortlist)  # type: ignore[arg-type]
            assert entry["kept"] == result.kept
            assert np.array_equal(read_label_png(entry["labels"])[0], result.labels)


@pytest.mark.parametrize("wrong", ["0", "-1", "few", "2.5", ""])
def test_what_is_no_shortlist_exits_2(wrong: str, capsys: Captured) -> None:
    words = ["bundle", "image.png", "--classes", "cat", f"--shortlist={wrong}", "--json"]
    assert main(words) == 2
    assert "expected a whole number of at least 1" in answer(capsys)["error"]["message"]


def test_a_broken_image_does_not_stop_the_others(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    output = tmp_path / "results"
    words = [str(tiny_bundle), str(photos), "--classes", "cat, sofa", "--output", str(output)]
    assert main([*words, "--json", "--no-overlay"]) == 1
    out, err = capsys.readouterr()
    entries = {Path(entry["path"]).name: entry for entry in json.loads(out)["images"]}
    assert list(entries) == ["tall.jpg", "torn.png", "wide.png"]
    assert set(entries["torn.png"]) == {"path", "error"}
    assert entries["wide.png"]["overlay"] is None
    assert err.count("torn.png") == 1
    assert "Traceback" not in err
    assert sorted(os.listdir(output)) == ["tall_labels.png", "wide_labels.png"]


def test_images_of_one_stem_get_names_of_their_own(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    images = []
    for name in ("a/x.png", "b/x.jpg", "c/X.png", "x_2.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.open(photos / "wide.png").save(path)
        images.append(str(path))
    # An input that has the name of a result is not overwritten.
    kept = tmp_path / "out" / "x_labels.png"
    kept.parent.mkdir()
    shutil.copy(photos / "wide.png", kept)
    before = kept.read_bytes()
    words = [str(tiny_bundle), *images, str(kept), "--classes", "cat, sofa", "--json"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    written = [entry[kind] for entry in answer(capsys)["images"] for kind in ("labels", "overlay")]
    assert len({path.casefold() for path in written}) == 10
    assert all(Path(path).is_file() for path in written)
    assert kept.read_bytes() == before
    assert str(kept) not in written


def test_names_for_many_images_of_one_stem_are_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[Path] = []

    def key(path: Path) -> str:
        looked_at.append(path)
        return str(path).casefold()

    monkeypatch.setattr(segment, "path_key", key)
    images = [tmp_path / str(number) / "rgb.png" for number in range(100)]
    taken = tmp_path / "rgb_3_labels.png"
    targets = segment._targets([*images, taken], tmp_path)
    names = ["rgb", *(f"rgb_{number}" for number in (2, *range(4, 102))), "rgb_3_labels"]
    assert [target.overlay.name for target in targets] == [f"{n}_overlay.png" for n in names]
    assert len(looked_at) == 101 + 2 * 102  # each image, and each name that is tried, once


def test_people_see_the_categories_the_pictures_and_the_note(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("# furniture\n[red]sofa\nchair\n", encoding="utf-8")
    words = [str(tiny_bundle), str(photos / "*.[jp][pn]g"), "--classes-file", str(classes)]
    assert main([*words, "--output", str(tmp_path), "--window", "sliding", "--chunk", "1"]) == 1
    out, err = capsys.readouterr()
    assert "%" in out
    assert "[red]sofa" in out or "chair" in out
    assert "wide_overlay.png" in out
    assert str(tmp_path.resolve()) in out
    assert "failed" in out
    assert "untrained" in out
    assert "onnxruntime" in err


def test_pictures_of_an_image_come_together_or_not_at_all(
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise InputError("cannot write: the disk is full")

    monkeypatch.setattr("escnet_runtime.commands.segment.save_picture", full)
    words = [str(tiny_bundle), str(photos / "wide.png"), "--classes", "cat", "--json"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    assert "disk is full" in answer(capsys)["images"][0]["error"]
    assert list((tmp_path / "out").iterdir()) == []


def test_templates_and_no_cache(
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("ESCNET_CACHE", str(cache))
    words = [str(tiny_bundle), str(photos / "wide.png"), "--classes", "cat", "--json"]
    words += ["--output", str(tmp_path), "--template", "a {}", "--template", "the {}"]
    assert main([*words, "--no-cache"]) == 0
    assert not cache.exists()
    assert main(words) == 0
    assert cache.exists()
    capsys.readouterr()
    assert main([*words, "--template", "no place for a name"]) == 2
    assert answer(capsys)["error"]["type"] == "VocabularyError"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["bundle", "image.png"],
        ["bundle", "--classes", "cat"],
        ["bundle", "image.png", "--classes", "cat", "--classes-file", "classes.txt"],
        ["bundle", "image.png", "--classes", "cat", "--window", "round"],
        ["bundle", "image.png", "--classes", "cat", "--backend", "abacus"],
        ["bundle", "image.png", "--classes", "cat", "--chunk", "many"],
    ],
)
def test_wrong_words_are_explained(words: list[str], capsys: Captured) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: escnet-segment" in err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["{bundle}", "{photos}/none.png", "--classes", "cat"], "ImageError"),
        (["{bundle}", "{empty}", "--classes", "cat"], "ImageError"),
        (["{bundle}", "{photos}/*.webp", "--classes", "cat"], "ImageError"),
        (["{bundle}", "{photos}", "--classes", " , "], "VocabularyError"),
        (["{bundle}", "{photos}", "--classes-file", "{photos}/none.txt"], "VocabularyError"),
        (["{photos}", "{photos}", "--classes", "cat"], "BundleError"),
        (["{bundle}", "{photos}", "--classes", "cat", "--chunk", "0"], "InputError"),
        (["{bundle}", "{photos}", "--classes", "a", "--output", "{photos}/wide.png"], "InputError"),
        (
            ["{bundle}", "{photos}", "--classes", "a", "--output", "{photos}/torn.png/x"],
            "InputError",
        ),
    ],
)
def test_wrong_input_is_an_error_before_any_work(
    words: list[str],
    kind: str,
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(Segmenter, "vocabulary", no_work)
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"bundle": tiny_bundle, "photos": photos, "empty": empty}
    assert main([*(word.format(**places) for word in words), "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["type"] == kind
    assert "escnet-segment: error: " in err


def test_peak_memory_is_this_processes_own(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """getrusage would count the 512 MiB of the process that started it."""
    ballast = bytearray(2**29)
    program = "import sys; from escnet_runtime.commands.segment import main; sys.exit(main())"
    words = [str(tiny_bundle), str(photos / "wide.png"), "--classes", "cat", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert 2**24 < json.loads(done.stdout)["peak_memory_bytes"] < len(ballast)


def test_the_public_face() -> None:
    assert sorted(escnet_runtime.__all__) == escnet_runtime.__all__
    assert {name for name in escnet_runtime.__all__ if not name.endswith("Error")} == {
        "Nv12Frame",
        "OutOfDeviceMemory",
        "Segmentation",
        "Segmenter",
        "Vocabulary",
        "YuvEncoding",
        "__version__",
    }
    assert all(hasattr(escnet_runtime, name) for name in escnet_runtime.__all__)
    program = "import sys, escnet_runtime; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_folder_that_is_also_the_output_does_not_feed_itself(
    tiny_bundle: Path, tmp_path: Path, capsys: Captured
) -> None:
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.png")
    words = [str(tiny_bundle), str(tmp_path), "--classes", "cat, sofa", "--output", str(tmp_path)]
    for _ in range(2):
        assert main([*words, "--json"]) == 0
        assert [Path(e["path"]).name for e in answer(capsys)["images"]] == ["photo.png"]
    written = ["photo.png", "photo_labels.png", "photo_overlay.png"]
    assert sorted(os.listdir(tmp_path)) == written
    # Named outright, a picture of ours is an image like any other.
    outright = str(tmp_path / "photo_overlay.png")
    words = [str(tiny_bundle), outright, "--classes", "cat", "--output", str(tmp_path / "again")]
    assert main([*words, "--json"]) == 0
    assert len(answer(capsys)["images"]) == 1
    # A folder of nothing but pictures of ours is an error, not a success over nothing.
    (tmp_path / "photo.png").unlink()
    words = [str(tiny_bundle), str(tmp_path), "--classes", "cat", "--output", str(tmp_path / "o")]
    assert main([*words, "--json"]) == 2
    assert "has written" in answer(capsys)["error"]["message"]


def test_a_run_that_was_killed_goes_on_where_it_was(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    (photos / "torn.png").unlink()
    output = tmp_path / "out"
    words = [str(tiny_bundle), str(photos), "--classes", "cat, sofa", "--output", str(output)]

    def milliseconds(*more: str) -> dict[str, float | None]:
        assert main([*words, "--json", *more]) == 0
        return {
            Path(entry["path"]).name: entry["milliseconds"] for entry in answer(capsys)["images"]
        }

    assert None not in milliseconds("--resume").values()
    first = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert milliseconds("--resume") == {"tall.jpg": None, "wide.png": None}
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == first
    # Without the option all is done anew, as ever.
    assert None not in milliseconds().values()
    # Killed between the two pictures of an image, or while one was written by somebody else.
    (output / "wide_overlay.png").unlink()
    assert [name for name, ms in milliseconds("--resume").items() if ms] == ["wide.png"]
    labels = output / "tall_labels.png"
    labels.write_bytes(labels.read_bytes()[:-40])
    assert [name for name, ms in milliseconds("--resume").items() if ms] == ["tall.jpg"]
    # Another image of that name; other options; another bundle.
    Image.new("RGB", (50, 40), "teal").save(photos / "wide.png")
    assert [name for name, ms in milliseconds("--resume").items() if ms] == ["wide.png"]
    assert None not in milliseconds("--resume", "--template", "my {}").values()
    assert None not in milliseconds("--resume", "--window", "sliding").values()
    assert None not in milliseconds("--resume").values()


def test_what_is_left_of_an_earlier_run_is_told_like_the_rest(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = [str(tiny_bundle), str(photos), "--classes", "cat, sofa", "--resume"]
    words += ["--output", str(tmp_path / "out"), "--no-overlay"]
    assert main([*words, "--json"]) == 1
    first = {entry["path"]: entry for entry in answer(capsys)["images"]}
    assert main([*words, "--json"]) == 1
    out, err = capsys.readouterr()
    for entry in json.loads(out)["images"]:
        before = first[entry["path"]]
        if "error" not in before:
            before |= {"milliseconds": None, "kept": None}
        assert entry == before
    assert "left 2 of 3 images as an earlier run has them" in err
    assert main(words) == 1
    assert "tall_labels.png" in capsys.readouterr().out
    # An overlay that lies there is not known to be of these labels; labels need no overlay.
    Image.new("RGB", (50, 40)).save(tmp_path / "out" / "wide_overlay.png")
    for wanted, done in ((words[:-1], 2), (words[:-1], 0), (words, 0)):
        assert main([*wanted, "--json"]) == 1
        images = json.loads(capsys.readouterr().out)["images"]
        assert sum(bool(entry.get("milliseconds")) for entry in images) == done


def test_an_overlay_of_other_labels_is_not_taken_for_these(
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between the two pictures of an image that other categories were asked of before."""
    output = tmp_path / "out"
    words = [str(tiny_bundle), str(photos / "wide.png"), "--output", str(output), "--json"]
    assert main([*words, "--classes", "cat, sofa"]) == 0
    before = (output / "wide_overlay.png").read_bytes()
    at_the_kill: dict[str, bytes] = {}

    def killed(path: Path, *_: object, **__: object) -> None:
        at_the_kill.update({file.name: file.read_bytes() for file in output.iterdir()})
        raise InputError("killed")

    with monkeypatch.context() as changed:
        changed.setattr(segment, "save_label_png", killed)
        assert main([*words, "--classes", "a photo, a dog, a wall"]) == 1
    assert at_the_kill["wide_overlay.png"] != before
    capsys.readouterr()
    for classes in ("a photo, a dog, a wall", "cat, sofa"):
        shutil.rmtree(output)
        output.mkdir()
        for name, content in at_the_kill.items():
            (output / name).write_bytes(content)
        assert main([*words, "--classes", classes, "--resume"]) == 0
        assert answer(capsys)["images"][0]["milliseconds"] is not None
