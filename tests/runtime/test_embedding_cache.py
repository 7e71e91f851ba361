"""The cache keeps what it is given, bounds itself, and never stands in the way."""

import logging
import multiprocessing
import os
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from escnet_runtime.embedding_cache import EmbeddingCache, default_cache_directory
from escnet_runtime.text_embedding import TextEmbedding


def _vector(text: str, width: int = 16) -> NDArray[np.float32]:
    """A unit vector that depends on the text alone."""
    row = np.random.default_rng(list(text.encode())).standard_normal(width)
    return (row / np.linalg.norm(row)).astype(np.float32)


def _entries(*texts: str, width: int = 16) -> dict[str, NDArray[np.float32]]:
    return {text: _vector(text, width) for text in texts}


def _assert_equal(
    got: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]
) -> None:
    assert got.keys() == expected.keys()
    for text, vector in expected.items():
        np.testing.assert_array_equal(got[text], vector)
        assert got[text].dtype == np.float32


def test_what_is_stored_is_found_again_bit_for_bit(tmp_path: Path) -> None:
    entries = _entries("a photo of a cat", "猫", "", "a 'quoted' \"text\"; --")
    EmbeddingCache(tmp_path / "new" / "folder", "model").put_many(entries)
    cache = EmbeddingCache(tmp_path / "new" / "folder", "model")
    _assert_equal(cache.get_many([*entries, "dog", "猫"]), entries)
    assert cache.get_many([]) == {}


def test_looking_up_writes_nothing(tmp_path: Path) -> None:
    assert EmbeddingCache(tmp_path / "cache", "model").get_many(["cat"]) == {}
    EmbeddingCache(tmp_path / "cache", "model").put_many({})
    assert not (tmp_path / "cache").exists()


def test_models_and_texts_are_told_apart_exactly(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, "one").put_many({"cat": _vector("1"), "Cat": _vector("2")})
    EmbeddingCache(tmp_path, "two").put_many({"cat": _vector("3")})
    one = EmbeddingCache(tmp_path, "one").get_many(["cat", "Cat", "cat "])
    _assert_equal(one, {"cat": _vector("1"), "Cat": _vector("2")})
    _assert_equal(EmbeddingCache(tmp_path, "two").get_many(["cat"]), {"cat": _vector("3")})
    assert EmbeddingCache(tmp_path, "ONE").get_many(["cat"]) == {}


def test_embeddings_are_those_of_a_text_encoder_and_a_tokenizer(tmp_path: Path) -> None:
    """With another one of either, a text is another vector; the other graphs do not matter."""

    def texts(encoder: str, tokenizer: str, decoder: str = "d") -> TextEmbedding:
        stages = {
            "text_encoder": SimpleNamespace(sha256=encoder),
            "decoder": SimpleNamespace(sha256=decoder),
        }
        manifest = SimpleNamespace(stages=stages, tokenizer=SimpleNamespace(sha256=tokenizer))
        bundle: Any = SimpleNamespace(manifest=manifest)
        pipeline: Any = None
        return TextEmbedding(bundle, pipeline, tmp_path)

    made = [texts("a", "b"), texts("x", "b"), texts("a", "x"), texts("b", "a")]
    assert len({one.model_key for one in made}) == 4
    assert texts("a", "b", decoder="x").model_key == made[0].model_key
    EmbeddingCache(tmp_path, made[0].model_key).put_many(_entries("cat"))
    found = [EmbeddingCache(tmp_path, one.model_key).get_many(["cat"]) for one in made]
    assert [len(one) for one in found] == [1, 0, 0, 0]


def test_an_entry_can_be_replaced(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "model")
    cache.put_many({"cat": _vector("old")})
    cache.put_many({"cat": _vector("new")})
    _assert_equal(cache.get_many(["cat"]), {"cat": _vector("new")})


def test_more_texts_than_a_statement_takes(tmp_path: Path) -> None:
    entries = _entries(*(f"text {number}" for number in range(2345)))
    cache = EmbeddingCache(tmp_path, "model")
    cache.put_many(entries)
    _assert_equal(cache.get_many(list(entries)), entries)


def test_results_can_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "model")
    cache.put_many(_entries("cat"))
    cache.get_many(["cat"])["cat"][:] = 0
    _assert_equal(cache.get_many(["cat"]), _entries("cat"))


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESCNET_CACHE", str(tmp_path / "here"))
    cache = EmbeddingCache(None, "model")
    cache.put_many(_entries("cat"))
    assert cache.path.parent == default_cache_directory() == tmp_path / "here"
    assert cache.path.is_file()
    monkeypatch.setenv("ESCNET_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_directory().name == "escnet"


def test_the_oldest_are_dropped_and_the_file_stays_small(tmp_path: Path) -> None:
    limit = 1_000_000
    cache = EmbeddingCache(tmp_path, "model", max_bytes=limit)
    for part in range(10):
        cache.put_many(_entries(*(f"text {part} {n}" for n in range(100)), width=1024))
        assert len(cache.get_many([f"text {part} {n}" for n in range(100)])) == 100
    assert cache.get_many([f"text 0 {n}" for n in range(100)]) == {}
    assert cache.path.stat().st_size < 2 * limit


def test_a_bound_that_nothing_fits_ends_too(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "model", max_bytes=0)
    cache.put_many(_entries("cat", "dog"))
    assert cache.get_many(["cat", "dog"]) == {}


def _damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "not a database":
        path.write_bytes(b"something else entirely" * 100)
    elif how == "cut off":
        os.truncate(path, size // 2 + 100)
    else:
        with path.open("r+b") as file:  # the header stays, everything behind it is noise
            file.seek(100)
            file.write(np.random.default_rng(0).bytes(size - 100))


@pytest.mark.parametrize("how", ["not a database", "cut off", "noise"])
def test_a_damaged_cache_is_set_aside_and_begun_anew(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    entries = _entries(*(f"text {number}" for number in range(300)), width=64)
    EmbeddingCache(tmp_path, "model").put_many(entries)
    cache = EmbeddingCache(tmp_path, "model")
    _damage(cache.path, how)
    with caplog.at_level(logging.WARNING):
        found = cache.get_many(list(entries))
        cache.put_many(entries)
    for text, vector in found.items():  # what survived is right
        np.testing.assert_array_equal(vector, entries[text])
    (record,) = caplog.records
    assert "is damaged" in record.getMessage()
    assert cache.path.with_name(cache.path.name + ".damaged").exists()
    _assert_equal(cache.get_many(list(entries)), entries)


def test_a_damaged_row_counts_as_not_stored(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "model")
    cache.put_many(_entries("cat", "dog", "bird"))
    connection = sqlite3.connect(cache.path)
    wrong = _vector("wrong").tobytes()
    connection.execute("UPDATE embeddings SET vector = ? WHERE text = 'cat'", (wrong,))
    connection.execute("UPDATE embeddings SET vector = 'text' WHERE text = 'dog'")
    connection.commit()
    connection.close()
    _assert_equal(cache.get_many(["cat", "dog", "bird"]), _entries("bird"))
    cache.put_many(_entries("cat"))
    _assert_equal(cache.get_many(["cat"]), _entries("cat"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_no_number_counts_as_not_stored(tmp_path: Path, value: float) -> None:
    cache = EmbeddingCache(tmp_path, "model")
    wrong = _vector("cat")
    wrong[3] = value
    cache.put_many({"cat": wrong, **_entries("dog")})
    _assert_equal(cache.get_many(["cat", "dog"]), _entries("dog"))
    cache.put_many(_entries("cat"))
    _assert_equal(cache.get_many(["cat", "dog"]), _entries("cat", "dog"))


def test_an_unusable_place_is_reported_once_and_bypassed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = EmbeddingCache(tmp_path / "file" / "cache", "model")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.put_many(_entries("cat"))
            assert cache.get_many(["cat"]) == {}
    (record,) = caplog.records
    assert "cannot be used" in record.getMessage()
    assert "ESCNET_CACHE" in record.getMessage()


def test_a_folder_in_place_of_the_file_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EmbeddingCache(tmp_path, "model")
    cache.path.mkdir()
    assert cache.get_many(["cat"]) == {}
    cache.put_many(_entries("cat"))
    assert len(caplog.records) == 1


def test_a_cache_that_cannot_be_written_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    EmbeddingCache(tmp_path, "model").put_many(_entries("cat"))
    connect = sqlite3.connect

    def read_only(path: Path, **options: object) -> sqlite3.Connection:
        return connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    cache = EmbeddingCache(tmp_path, "model")
    for text in ("dog", "bird"):
        cache.put_many(_entries(text))
    (record,) = caplog.records
    assert "readonly database" in record.getMessage()


def _work(folder: Path, worker: int) -> None:
    cache = EmbeddingCache(folder, "model")
    for number in range(20):
        texts = [f"text {number} {item}" for item in range(10)]  # the same for every worker
        cache.put_many(_entries(*texts, f"own {worker} {number}"))
        _assert_equal(cache.get_many(texts), _entries(*texts))


def _assert_all_there(folder: Path, workers: int) -> None:
    texts = [f"text {number} {item}" for number in range(20) for item in range(10)]
    texts += [f"own {worker} {number}" for worker in range(workers) for number in range(20)]
    _assert_equal(EmbeddingCache(folder, "model").get_many(texts), _entries(*texts))


def test_processes_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_strict_work, args=(tmp_path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    _assert_all_there(tmp_path, len(workers))


def _strict_work(folder: Path, worker: int) -> None:
    class Fail(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os._exit(3)  # a warning means that an access failed

    logging.getLogger().addHandler(Fail(logging.WARNING))
    _work(folder, worker)


def test_threads_at_the_same_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            _work(tmp_path, worker)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not caplog.records
    _assert_all_there(tmp_path, len(threads))


def test_processes_that_meet_a_damaged_cache_all_go_on(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "model")
    cache.path.write_bytes(b"something else entirely" * 100)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_tolerant_work, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    cache.put_many(_entries("after"))
    _assert_equal(cache.get_many(["after"]), _entries("after"))


def _tolerant_work(folder: Path, worker: int) -> None:
    cache = EmbeddingCache(folder, "model")
    for number in range(20):
        entries = _entries(f"{worker} {number}")
        cache.put_many(entries)
        for text, vector in cache.get_many(list(entries)).items():
            np.testing.assert_array_equal(vector, entries[text])
