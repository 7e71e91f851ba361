"""Tensors that lie on disk until they are asked for."""

import gc
import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from escnet.model import EscNet
from escnet_export.parity import reference_sample
from escnet_export.tensors import TensorStore, digest
from escnet_runtime.images import ImageArray
from escnet_runtime.preprocess import Preprocessing
from tests.model.models import text

ANY = arrays.arrays(
    dtype=st.sampled_from([np.float32, np.int32, np.float16, np.bool_]),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(st.lists(ANY, max_size=6))
def test_what_was_put_in_comes_out(values: list[np.ndarray]) -> None:
    with TensorStore() as store:
        kept = [store.put({"a": value}) for value in values]
        for one, value in zip(kept, values, strict=True):
            assert one["a"].dtype == value.dtype
            assert one["a"].shape == value.shape
            assert one["a"].tobytes() == value.tobytes()
            assert one.digests == {"a": digest(value)}


def test_it_keeps_what_was_there_when_the_array_changes_afterwards() -> None:
    with TensorStore() as store:
        array = np.zeros((3, 4), np.float32)
        kept = store.put({"scores": array})
        array += 1
        kept["scores"][:] = 5  # a copy of the caller's own
        assert not kept["scores"].any()


def test_an_array_that_is_no_single_stretch_of_memory() -> None:
    with TensorStore() as store:
        array = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
        np.testing.assert_array_equal(store.put({"a": array})["a"], array)


def test_equal_content_is_kept_once() -> None:
    with TensorStore() as store:
        array = np.arange(1000, dtype=np.float32)
        store.put({"a": array})
        once = store.bytes
        store.put({"b": array.copy()})
        assert store.bytes == once
        store.put({"b": array.reshape(10, 100)})
        assert store.bytes > once  # another shape is another tensor


def test_equal_bits_alone_have_one_digest() -> None:
    zeros = np.zeros(4, np.float32)
    assert digest(zeros) == digest(zeros.copy())
    assert digest(zeros) != digest(-zeros)
    assert digest(zeros) != digest(zeros.astype(np.int32))
    assert digest(zeros) != digest(zeros.reshape(2, 2))


def test_no_name_is_left_in_the_folder(tmp_path: Path) -> None:
    with TensorStore(tmp_path) as store:
        store.put({"a": np.ones(1000, np.float32)})
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_when_it_is_written(tmp_path: Path) -> None:
    """Not when somebody reads what never arrived."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TensorStore(tmp_path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OSError, match=os.strerror(27)):
                store.put({"a": np.ones(100_000, np.float32)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_sample_holds_none_of_the_tensors(mini: EscNet, picture: ImageArray) -> None:
    """Image, logits and prompts alone are in memory."""
    config = mini.config
    spec = Preprocessing(size=config.clip.image_size, mean=config.image_mean, std=config.image_std)
    embeddings = text(config, 6).numpy()
    with TensorStore() as store:
        tracemalloc.start()
        try:
            sample = reference_sample(mini, picture, embeddings, spec, store=store)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert sample.calls[-1].graph == "decoder"
        assert held < store.bytes / 4


def test_a_store_that_nobody_closed_is_gone_with_what_it_gave(tmp_path: Path) -> None:
    """Warnings are errors here: a file that is left open would be one."""
    kept = TensorStore(tmp_path).put({"a": np.ones(1000, np.float32)})
    assert kept["a"].all()
    descriptors = len(os.listdir("/proc/self/fd"))
    del kept
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1
