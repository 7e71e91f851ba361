"""``escnet-eval``: the figures of bundles and checkpoints, options and exit codes."""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from escnet.build import build_model
from escnet.presets import preset
from escnet.train.validate import correlation, validate
from escnet.weights import load_checkpoint, resized, save_checkpoint
from escnet_bench.clip_alone import correlation_labels
from escnet_bench.eval_command import main
from escnet_bench.evaluate import class_keys, evaluate
from escnet_bench.prepare_command import main as prepare
from escnet_bench.torch_checkpoint import checkpoint_segmenter
from escnet_runtime.bundle import Bundle
from escnet_runtime.dataset import Dataset, LabelledImages, Sample
from escnet_runtime.postprocess import resize_bilinear
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.windows import LogitCanvas, crops, plan_windows
from tests.bench.folders import made_dataset, save_labels
from tests.shared import shared_data

_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from escnet_bench.eval_command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of ``tiny_bundle``, as a checkpoint."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_checkpoint(build_model(preset("tiny")), path, trained=False, weights="seeded random")
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return made_dataset(tmp_path / "data")


def run_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    """Exit code and the one JSON object on standard output."""
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def without_torch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT_TORCH, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_bundle_is_evaluated_without_torch(tiny_bundle: Path, dataset: Path) -> None:
    done = without_torch(tiny_bundle, dataset, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 2
    assert list(found["per_class"]) == ["sky", "tree, plant", "wall"]
    there = [value for value in found["per_class"].values() if value is not None]
    assert found["miou"] == pytest.approx(sum(there) / len(there))
    assert 0 <= found["pixel_accuracy"] <= 1
    assert found["pixels"] == 40 * (23 + 31)
    assert (found["model"], found["precision"], found["kind"]) == ("tiny", "fp16", "bundle")
    assert "untrained" in found["note"]
    assert found["conditions"]["bundle"]["model"] == "tiny"


def test_masks_of_0_and_255_are_warned_of(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made_dataset(tmp_path / "data", ["background", "crack"], images=1)
    labels = np.full((24, 40), 255, np.uint8)
    labels[:10] = 0
    save_labels(data / "labels" / "photo0.png", labels)
    words = (str(tiny_bundle), str(data), "--json", "--quiet")
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["classes_in_ground_truth"] == 1
    assert f"warning: no pixel of {data} is labelled as 'crack'" in err
    assert main([*words, "--limit", "1"]) == 0
    assert "labelled as" not in capsys.readouterr().err
    for _ in range(2):  # counted, and then read from the file
        assert main([*words, "--work", str(tmp_path / "counts")]) == 0
        assert "is labelled as 'crack'" in capsys.readouterr().err


def test_the_name_of_a_class_does_not_steer_the_terminal(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made_dataset(tmp_path / "data", ["sky", "tree\x1b[2J"])
    assert main([str(tiny_bundle), str(data)]) == 0
    out = capsys.readouterr().out
    assert "tree\\x1b[2J" in out
    assert "\x1b" not in out


def test_the_small_world_is_evaluated_without_torch(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By group, for people and in the file; the same scene as files gives the same figures."""
    output, folder = tmp_path / "figures.json", tmp_path / "heldout"
    words = ("shapes:heldout:7", "--objects", "7", "8", "--limit", "1", "--output", output)
    done = without_torch(tiny_bundle, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))
    assert (found["images"], found["pixels"]) == (1, 128 * 128)
    assert (found["dataset"], found["classes"]) == ("shapes:heldout:7", 194)
    assert found["world"] == {"version": 1, "size": 128, "objects": [7, 8]}
    groups = found["groups"]
    assert list(groups) == ["held_out", "seen", "surfaces"]
    assert all(f"{name}: mIoU" in done.stdout for name in groups)
    assert sum(group["pixels"] for group in groups.values()) == found["pixels"]
    present = [group["classes_in_ground_truth"] for group in groups.values()]
    assert sum(present) == found["classes_in_ground_truth"]
    means = [group["miou"] for group in groups.values()]
    assert np.average(means, weights=present) == pytest.approx(found["miou"])

    drawn = ["shapes", "--seed", "7", "--objects", "7", "8", "--count", "1"]
    assert prepare([*drawn, "--output", str(folder)]) == 0
    capsys.readouterr()
    read = run_json(capsys, tiny_bundle, folder)[1]
    for key in ("miou", "pixel_accuracy", "images", "pixels", "per_class", "confusions"):
        assert found[key] == read[key]
    assert (read["groups"], read["world"], read["dataset"]) == ({}, None, "heldout")


def test_an_evaluation_that_is_interrupted_goes_on(
    tiny_bundle: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (tiny_bundle, dataset, "--work", tmp_path / "counts")
    expected = run_json(capsys, tiny_bundle, dataset)[1]
    asked: list[int] = []
    read = Dataset.__getitem__

    def interrupted(self: Dataset, index: int) -> Any:
        asked.append(index)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(Dataset, "__getitem__", interrupted)
    assert run_json(capsys, *words)[0] == 130
    assert {path.name for path in tmp_path.iterdir()} == {"data", "counts"}
    code, found = run_json(capsys, *words)
    assert (code, asked) == (0, [0, 1, 1])
    assert (found["runs"], expected["runs"]) == (2, 1)
    assert found["seconds"] > 0
    for key in expected.keys() - {"runs", "seconds", "conditions"}:
        assert found[key] == expected[key], key
    again = run_json(capsys, *words)[1]  # all is counted
    assert asked == [0, 1, 1]
    assert (again["miou"], again["runs"]) == (found["miou"], 2)


def test_counts_are_not_kept_where_the_result_goes(
    tiny_bundle: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "one")
    words = ("--work", tmp_path / "one", "--output", tmp_path / "link")
    code, found = run_json(capsys, tiny_bundle, dataset, *words)
    assert code == 2
    assert "--work and --output are both" in found["error"]["message"]
    assert not (tmp_path / "one").exists()


def test_counts_of_a_few_images_are_a_beginning(
    tiny_bundle: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (tiny_bundle, dataset, "--work", tmp_path / "counts")
    assert run_json(capsys, *words, "--limit", "1")[1]["images"] == 1
    assert run_json(capsys, *words)[1] == {
        **run_json(capsys, *words)[1],
        "conditions": ANY,
        "images": 2,
        "runs": 2,
    }
    code, found = run_json(capsys, *words, "--limit", "1")
    assert code == 2
    assert "counts of 2 images" in found["error"]["message"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--window", "sliding"), "window"),
        (("--shortlist", "2"), "shortlist"),
        (("--correlation",), "correlation"),
    ],
)
def test_counts_of_another_evaluation_are_refused(
    change: tuple[str, ...],
    named: str,
    tiny_bundle: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (tiny_bundle, dataset, "--work", tmp_path / "counts")
    assert run_json(capsys, *words)[0] == 0
    before = (tmp_path / "counts").read_bytes()
    code, found = run_json(capsys, *words, *change)
    assert code == 2
    assert f"another evaluation, with another {named}:" in found["error"]["message"]
    assert (tmp_path / "counts").read_bytes() == before


def test_counts_of_other_images_are_refused(
    tiny_bundle: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (tiny_bundle, dataset, "--work", tmp_path / "counts")
    assert run_json(capsys, *words)[0] == 0
    next((dataset / "images").iterdir()).rename(dataset / "images" / "zebra.png")
    next((dataset / "labels").iterdir()).rename(dataset / "labels" / "zebra.png")
    code, found = run_json(capsys, *words)
    assert code == 2
    assert "with another dataset:" in found["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"[1, 2]", pickle.dumps({"a": 1})])
def test_a_file_that_holds_no_counts_is_left_as_it_is(
    content: bytes,
    tiny_bundle: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "notes"
    work.write_bytes(content)
    code, found = run_json(capsys, tiny_bundle, dataset, "--work", work)
    assert code == 2
    assert "holds no counts of an evaluation" in found["error"]["message"]
    assert work.read_bytes() == content


def test_a_checkpoint_is_evaluated_at_another_image_size(
    checkpoint: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the checkpoint that was saved at that size."""
    code, found = run_json(capsys, checkpoint, dataset, "--image-size", "64")
    assert (code, found["image_size"]) == (0, 64)
    assert found["weights"].endswith("positions resized from 128 px")
    saved = resized(load_checkpoint(checkpoint), 64)
    save_checkpoint(saved.model, tmp_path / "64.safetensors", trained=False, weights=saved.weights)
    own = run_json(capsys, tmp_path / "64.safetensors", dataset)[1]
    assert own["image_size"] == 64
    assert own["per_class"] == found["per_class"]


def test_a_bundle_says_how_to_get_another_image_size(
    tiny_bundle: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run_json(capsys, tiny_bundle, dataset, "--image-size", "64")
    assert code == 2
    assert "escnet-export --image-size 64" in found["error"]["message"]


def test_a_checkpoint_without_torch_names_what_to_install(checkpoint: Path, dataset: Path) -> None:
    done = without_torch(checkpoint, dataset)
    assert done.returncode == 1
    assert "escnet-bench[torch]" in done.stderr
    assert "Traceback" not in done.stderr


def test_figures_are_those_of_the_label_maps(tiny_bundle: Path, dataset: Path) -> None:
    """Labels that are what the model predicts are right everywhere; shifted by one, nowhere."""
    names = Dataset.open(dataset).names
    with Segmenter(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(names)
        for shift, expected in ((0, 1.0), (1, 0.0)):
            for image, labels in Dataset.open(dataset).pairs:
                predicted = segmenter(image, vocabulary).labels
                save_labels(labels, (predicted + shift).astype(np.uint8) % 3)
            scores = evaluate(segmenter, Dataset.open(dataset)).scores
            assert (scores.miou, scores.pixel_accuracy) == (expected, expected)


def test_checkpoint_and_bundle_give_the_same_figures(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, checkpoint: Path, dataset: Path
) -> None:
    """The bundle is fp16 and the weights are random, whose near-ties rounding may decide."""
    for window in ("none", "sliding"):
        words = (dataset, "--window", window)
        code, torch_found = run_json(capsys, checkpoint, *words)
        assert code == 0
        code, bundle_found = run_json(capsys, tiny_bundle, *words)
        assert code == 0
        assert torch_found["precision"] == "fp32"
        assert torch_found["kind"] == "checkpoint"
        assert torch_found["backend"].startswith("torch")
        assert torch_found["window"] == bundle_found["window"] == window
        for key in ("miou", "pixel_accuracy"):
            assert torch_found[key] == pytest.approx(bundle_found[key], abs=0.02)
        for key in ("images", "pixels", "categories", "chunk", "note", "classes_in_ground_truth"):
            assert torch_found[key] == bundle_found[key]


@pytest.mark.parametrize("window", ["none", "sliding"])
def test_the_correlation_alone_is_what_clip_gives_without_esc_blocks(
    checkpoint: Path,
    tiny_bundle: Path,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    window: str,
) -> None:
    """As training validates it, and with windows of one category alone that one everywhere."""
    words = (dataset, "--correlation", "--window", window)
    code, found = run_json(capsys, checkpoint, *words)
    assert code == 0
    assert (found["correlation"], found["window"], found["kept_max"]) == (True, window, 0)
    bundle = run_json(capsys, tiny_bundle, *words)[1]
    assert bundle["miou"] == pytest.approx(found["miou"], abs=0.02)
    if window == "none":
        model = load_checkpoint(checkpoint).model.eval()
        expected = validate(model, Dataset.open(dataset), predict=correlation)
        assert found["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    assert main([str(tiny_bundle), str(dataset), "--correlation"]) == 0
    shown = capsys.readouterr().out
    assert "the correlation of its CLIP alone" in shown
    assert "given to the model" not in shown


def test_the_windows_of_the_correlation_are_those_of_the_model(tiny_bundle: Path) -> None:
    """Each window sees its own part: of two halves of an image, the labels are their own."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 110, 3), np.uint8)
    with Segmenter(tiny_bundle) as segmenter:
        words = segmenter.vocabulary(["cat", "dog", "wall", "cat"])
        size = segmenter.bundle.manifest.constants.preprocessing.size
        (grid, _) = segmenter.bundle.manifest.model.grid
        plan = plan_windows(size, grid)
        seen: list[np.ndarray] = []

        def note(stage: str, _: slice, out: Mapping[str, Any]) -> None:
            if stage == "correlation":
                seen.append(np.array(out["scores"], np.float32)[: len(words.embeddings)])

        maps = []
        for look in crops(image, plan):
            segmenter(look, words, observer=note)
            maps.append(np.concatenate(seen))
            seen.clear()
        canvas = LogitCanvas(plan, len(words.embeddings))
        for index, one in enumerate(maps):
            canvas.add(index, slice(0, len(one)), one)
        joined = resize_bilinear(canvas.chunk(slice(0, len(words.embeddings))), 90, 110)
        expected = words.label_of[joined.argmax(0)]
        found = correlation_labels(segmenter, image, words, window="sliding")
    assert found.dtype == np.uint8
    assert found.max() < 3  # the second "cat" is the first one
    assert (found == expected).mean() > 0.99  # fp16 scores of the graph tie where cosines do not


def test_a_shortlist_of_all_changes_nothing_and_one_of_less_is_said(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path
) -> None:
    plain = run_json(capsys, tiny_bundle, dataset)[1]
    assert (plain["shortlist"], plain["kept_mean"], plain["kept_max"]) == (None, 3, 3)
    for option in ("3", "auto"):
        found = run_json(capsys, tiny_bundle, dataset, "--shortlist", option)[1]
        for key in ("miou", "pixel_accuracy", "per_class", "kept_mean"):
            assert found[key] == plain[key]
    one = run_json(capsys, tiny_bundle, dataset, "--shortlist", "1")[1]
    assert (one["shortlist"], one["kept_mean"], one["kept_max"]) == (1, 1, 1)
    assert main([str(tiny_bundle), str(dataset), "--shortlist", "0"]) == 2
    assert "--shortlist is 0" in capsys.readouterr().err


def test_a_checkpoint_is_processed_with_the_constants_of_its_bundle(
    tiny_bundle: Path, checkpoint: Path
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    with checkpoint_segmenter(checkpoint) as segmenter:
        own = segmenter.bundle.manifest
        folder = segmenter.bundle.root
        assert own.constants == manifest.constants
        assert own.tokenizer == manifest.tokenizer
        assert own.model.logits == manifest.model.logits
        assert segmenter.chunk == manifest.constants.chunk
    assert not folder.exists()


def test_a_checkpoint_is_evaluated_in_whole_float32(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU torch gives convolutions fewer bits by default; and it stays so for others."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with checkpoint_segmenter(checkpoint):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_the_chunk_does_not_change_the_figures(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path
) -> None:
    words = (tiny_bundle, dataset, "--limit", "1", "--chunk")
    found = [run_json(capsys, *words, chunk)[1] for chunk in ("1", "3")]
    assert found[0]["images"] == 1
    assert found[0]["miou"] == pytest.approx(found[1]["miou"], abs=0.02)


def test_people_get_a_table(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "figures.json"
    assert main([str(tiny_bundle), str(dataset), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    for words in ("IoU by class", "tree, plant", "mIoU", "pixel accuracy", "untrained weights"):
        assert words in out
    text = output.read_text(encoding="utf-8")
    assert json.loads(text)["images"] == 2
    assert str(tmp_path) not in text  # results are published


def test_other_names_may_be_asked_for(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("blue sky\nbush\nbrick wall\nbackdrop\ncurtain\n", encoding="utf-8")
    words = (tiny_bundle, dataset, "--classes-file", names)
    code, document = run_json(capsys, *words)
    assert code == 0
    assert (document["categories"], document["extra_categories"]) == (5, 2)
    assert document["merge_extra"] is False
    assert list(document["per_class"]) == ["sky", "tree, plant", "wall"]
    code, document = run_json(capsys, *words, "--merge-extra")
    assert code == 0
    assert (document["categories"], document["merge_extra"]) == (5, True)
    assert list(document["per_class"]) == ["sky", "tree, plant", "wall"]
    names.write_text("blue sky\nbush\n", encoding="utf-8")
    for option in ((), ("--merge-extra",)):
        code, document = run_json(capsys, *words, *option)
        assert code == 2
        expected = "got 2 categories for a dataset of 3 classes; expected 3 or more"
        assert expected in document["error"]["message"]


@pytest.mark.parametrize(
    ("merge", "iou", "right"),
    [(False, (0.5, 1 / 3, 1 / 4), 4 / 9), (True, (0.5, 1 / 3, 1.0), 7 / 9)],
)
def test_further_categories_are_wrong_or_the_last_class(
    merge: bool, iou: tuple[float, ...], right: float
) -> None:
    """As PASCAL VOC-20b has its background, which things that are in it describe."""
    truth = np.array([[0, 0, 1, 1, 255, 2, 2, 2, 2, 0]], np.uint8)
    found = np.array([[0, 1, 1, 0, 4, 3, 4, 2, 3, 0]], np.uint8)
    images = [(truth[:, :5], found[:, :5]), (truth[:, 5:], found[:, 5:])]

    class Folder:
        names, groups = ("cat", "dog", "background"), {"things": (0, 1)}

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            labels = images[index][0]
            pixels = np.full((*labels.shape, 3), index, np.uint8)
            return Sample(name=f"photo{index}", image=pixels, labels=labels)

    class Finding:
        def vocabulary(self, names: tuple[str, ...]) -> object:
            return names

        def __call__(self, image: Any, vocabulary: object, **_: object) -> Any:
            index = int(image[0, 0, 0])
            return SimpleNamespace(labels=images[index][1], kept=5 - index)

    segmenter, folder, seen = Finding(), Folder(), list[str]()
    words = ["cat", "dog", "background", "sky", "wall"]
    result = evaluate(
        cast(Segmenter, segmenter),
        cast(LabelledImages, folder),
        categories=words,
        merge_extra=merge,
        progress=seen.append,
    )
    assert result.scores.pixels == 9
    assert result.scores.iou == pytest.approx(iou)
    assert result.scores.pixel_accuracy == pytest.approx(right)
    assert result.groups["things"].miou == pytest.approx((iou[0] + iou[1]) / 2)
    assert result.extra == (() if merge else ("sky", "wall"))
    assert (result.categories, result.images, result.kept_mean, result.kept_max) == (5, 2, 4.5, 5)
    assert seen == ["photo0", "photo1"]


def test_what_is_taken_for_another_category_is_missed_by_its_class(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    """Labels that are the predictions themselves: right, but where an extra category won."""
    asked = ["sky", "tree, plant", "wall", "horse", "a blue ring", "SKY"]
    with Segmenter(tiny_bundle) as segmenter:
        vocabulary = segmenter.vocabulary(asked)
        extra = total = 0
        lost = [0, 0, 0]
        for image, labels in Dataset.open(dataset).pairs:
            predicted = segmenter(image, vocabulary).labels
            truth = np.where(predicted < 3, predicted, predicted % 3).astype(np.uint8)
            save_labels(labels, truth)
            extra += int((predicted >= 3).sum())
            total += predicted.size
            for index in range(3):
                lost[index] += int((truth[predicted >= 3] == index).sum())
        found = evaluate(segmenter, Dataset.open(dataset), categories=asked)
        truths = [0, 0, 0]
        for sample in Dataset.open(dataset):
            for index in range(3):
                truths[index] += int((sample.labels == index).sum())
    assert 0 < extra < total  # else this shows nothing
    assert found.scores.pixel_accuracy == (total - extra) / total
    expected = [
        (there - missed) / there if there else None
        for missed, there in zip(lost, truths, strict=True)
    ]
    assert found.scores.iou == pytest.approx(tuple(expected))
    assert found.extra == ("horse", "a blue ring", "SKY")
    assert found.confusions
    assert {one.prediction for one in found.confusions} <= {3, 4}
    path = tmp_path / "names.json"
    path.write_text(json.dumps(asked), encoding="utf-8")
    words = (tiny_bundle, dataset, "--classes-file", path)
    document = run_json(capsys, *words)[1]
    assert {one["prediction"] for one in document["confusions"]} <= {"horse", "a blue ring"}
    assert document["miou"] == found.scores.miou
    assert main([*map(str, words)]) == 0
    assert "3 categories beyond the classes count as wrong" in capsys.readouterr().out
    assert main([*map(str, words), "--merge-extra"]) == 0
    assert "3 categories beyond the classes count as the last class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["wall", "sky", "tree, plant"], "in another order: 'wall' is entry 1 and class 3"),
        (["house", "sky", "Wall", "sofa"], "'sky' is entry 2, class 1 there"),
        (["sofa", "sky", "tree", "wall"], "'sky' is entry 2, class 1 there"),
    ],
)
def test_the_classes_in_another_order_are_refused(
    asked: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(asked), encoding="utf-8")
    code, document = run_json(capsys, tiny_bundle, dataset, "--classes-file", path)
    assert code == 2
    assert message in document["error"]["message"]


def test_an_image_that_cannot_be_read_is_an_error(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path
) -> None:
    (dataset / "images" / "photo1.jpg").write_bytes(b"no picture")
    code, document = run_json(capsys, tiny_bundle, dataset)
    assert code == 2
    assert "photo1.jpg" in document["error"]["message"]
    assert "miou" not in document
    assert run_json(capsys, tiny_bundle, dataset, "--limit", "1")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{bundle}"], "DATASET"),
        (["no-such-model", "{data}"], "neither a bundle"),
        (["best.safetensors", "{data}"], "NAME.safetensors): there is no such file or folder"),
        (["{data}/classes.json", "{data}"], "neither a bundle"),
        (["{data}", "{data}"], "it holds no bundle.json"),
        (["{bundle}", "no-such-dataset"], "there is no dataset at no-such-dataset"),
        (["{bundle}", "{data}", "--limit", "0"], "--limit is 0"),
        (["{bundle}", "{data}", "--objects", "1", "2"], "a number of objects goes with shapes:"),
        (["{bundle}", "shapes:heldout", "--objects", "5", "2"], "got 5 to 2 objects"),
        (["{bundle}", "shapes:heldout", "--limit", "0"], "--limit is 0"),
        (["{bundle}", "shapes:test"], "got data set 'shapes:test'; expected one of shapes:train"),
        (["{bundle}", "{data}", "--chunk", "0"], "chunk is 0"),
        (["{bundle}", "{data}", "--merge-extra"], "--classes-file"),
        (["{bundle}", "{data}", "--window", "round"], "invalid choice"),
        (["{bundle}", "{data}", "--correlation", "--shortlist", "2"], "leave out one of the two"),
        (["{bundle}", "{data}", "--backend", "torch"], "is a bundle"),
        (["{checkpoint}", "{data}", "--backend", "onnxruntime"], "is a checkpoint"),
        (["{bundle}", "{data}", "--classes-file", "{data}"], "Cannot read the categories"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(
    words: list[str],
    message: str,
    tiny_bundle: Path,
    checkpoint: Path,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"bundle": tiny_bundle, "data": dataset, "checkpoint": checkpoint}
    code, document = run_json(capsys, *[word.format(**places) for word in words])
    assert code == 2
    assert message in document["error"]["message"]


@given(st.lists(st.sampled_from(["a", "b", "a (class 1)", "a (class 2)", "a (class 1) (class 1)"])))
@example(["a", "b", "a"])
@example(["a", "a", "a (class 1)"])
def test_every_class_keeps_its_own_figures(names: list[str]) -> None:
    keys = class_keys(names)
    assert len(keys) == len(names) == len(set(keys))
    for index, (key, name) in enumerate(zip(keys, names, strict=True)):
        if name in names[:index]:
            assert key.startswith(f"{name} (class {index})")
        else:
            assert key == name


def test_categories_that_the_model_cannot_tell_apart_are_refused(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("sky\nSKY\nwall\n", encoding="utf-8")
    code, document = run_json(capsys, tiny_bundle, dataset, "--classes-file", names)
    assert code == 2
    assert "'sky' (0) and 'SKY' (1)" in document["error"]["message"]


def test_real_photographs(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    data = shared_data()
    if data is None or not (data / "coco_photos").is_dir():
        pytest.skip("no labelled photographs beside this checkout")
    code, found = run_json(capsys, tiny_bundle, data / "coco_photos", "--limit", "2")
    assert code == 0
    assert found["images"] == 2
    assert found["categories"] == len(found["per_class"]) == 80
