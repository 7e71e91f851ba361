"""What tells a run's data apart."""

import json
from pathlib import Path

import pytest

from escnet.train import fingerprint
from escnet.train.data import open_source
from escnet.train.fingerprint import DataFingerprint, differences
from tests.bench.folders import made_dataset


def found(folder: Path | str, limit: int | None = None) -> DataFingerprint:
    return DataFingerprint.of(open_source(str(folder), limit=limit))


def test_a_folder_is_told_apart_by_its_images_and_classes(tmp_path: Path) -> None:
    data = made_dataset(tmp_path / "data", images=3)
    first = found(data)
    assert first.images == 3
    assert found(made_dataset(tmp_path / "twin", images=3)) == first  # wherever it lies
    (data / "images" / "photo1.jpg").rename(data / "images" / "other.jpg")
    (data / "labels" / "photo1.png").rename(data / "labels" / "other.png")
    renamed = found(data)
    assert renamed.images == first.images
    assert renamed.names != first.names
    assert renamed.classes == first.classes
    names = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps(names[::-1]))
    assert found(data).classes != first.classes


def test_of_a_limited_folder_its_first_images_count(tmp_path: Path) -> None:
    data = made_dataset(tmp_path / "data", images=3)
    two = made_dataset(tmp_path / "two", images=2)
    assert found(data, limit=2) == found(two)
    assert found(data, limit=2).names != found(data).names


def test_a_built_in_set_is_told_apart_by_its_world(monkeypatch: pytest.MonkeyPatch) -> None:
    first = found("shapes:train", limit=5)
    assert first.images == 5
    assert found("shapes:train", limit=5) == first
    monkeypatch.setattr(fingerprint, "WORLD_VERSION", -1)
    assert found("shapes:train", limit=5).names != first.names


def test_a_data_set_that_was_not_noted_is_not_compared() -> None:
    one = DataFingerprint(images=1, names="a", classes="b")
    assert differences({}, {"data.train": one}) == []
    assert differences({"data.train": one.plain()}, {"data.train": one}) == []
    assert differences({"data.train": one.plain()}, {}) == []
