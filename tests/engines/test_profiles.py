"""Engines are built for the sizes that the runtime runs graphs at."""

import dataclasses

import pytest

from escnet_engines import BuildError
from escnet_engines.profiles import chunk_buckets, stage_profiles
from escnet_runtime.engine_record import AxisRange
from escnet_runtime.manifest import Stage, TensorSpec
from escnet_runtime.text_embedding import TEXT_BATCH
from tests.runtime.test_manifest import sample_manifest

MANIFEST = sample_manifest()


def _stage(*shapes: tuple[int | str, ...]) -> Stage:
    inputs = tuple(
        TensorSpec(name=f"x{index}", dtype="float32", shape=shape)
        for index, shape in enumerate(shapes)
    )
    return dataclasses.replace(MANIFEST.stages["decoder"], inputs=inputs)


def _most(*shapes: tuple[int | str, ...], chunks: tuple[int, ...]) -> list[dict[str, int]]:
    profiles = stage_profiles("graph", _stage(*shapes), MANIFEST, chunks)
    return [{axis: sizes.most for axis, sizes in profile.items()} for profile in profiles]


def test_chunks_are_whole_groups_and_rise() -> None:
    assert chunk_buckets(MANIFEST, None) == (32,)
    assert chunk_buckets(MANIFEST, [150, 1, 16]) == (16, 160)


def test_categories_and_their_groups_have_a_profile_for_each_chunk() -> None:
    assert _most(("n", 4), ("g", 16), chunks=(16, 160)) == [{"n": 16, "g": 1}, {"n": 160, "g": 10}]


def test_a_graph_that_is_free_of_the_chunk_has_one_profile() -> None:
    assert _most(("b", 3, 8, 8), chunks=(16, 160)) == [{"b": 1}]
    assert _most((1, 4), chunks=(16, 160)) == []


def test_every_size_below_is_taken_and_the_largest_is_tuned_for() -> None:
    (profile,) = stage_profiles("graph", _stage(("n", 4)), MANIFEST, (32,))
    assert profile == {"n": AxisRange(least=1, tuned=32, most=32)}


def test_texts_are_as_the_segmenter_encodes_them() -> None:
    (profile,) = stage_profiles("graph", _stage(("t", "l")), MANIFEST, (32,))
    assert profile["t"].most == TEXT_BATCH
    assert profile["l"] == AxisRange(least=1, tuned=16, most=77)


def test_an_unknown_axis_is_named() -> None:
    with pytest.raises(BuildError, match="graph 'graph' has the dynamic axis q; expected"):
        stage_profiles("graph", _stage(("n", "q")), MANIFEST, (32,))
