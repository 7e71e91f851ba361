"""Where tensors lie: what lives at the same time never shares memory."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import InputError
from escnet_runtime.gpu.layout import Layout, bucket_of
from escnet_runtime.gpu.layout_plan import make_layout
from escnet_runtime.gpu.memory import memory_plan
from escnet_runtime.groups import whole_groups
from escnet_runtime.manifest import Manifest
from tests.gpu.made_up import made_up_stages


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    """Of `tiny`."""
    return Bundle.open(tiny_bundle).manifest


@given(st.integers(1, 65_535))
def test_a_bucket_holds_its_categories_with_little_padding(categories: int) -> None:
    bucket = bucket_of(categories)
    assert categories <= bucket <= 65_536
    assert bucket % 8 == 0
    assert bucket - categories < max(8, categories / 8)
    assert bucket_of(bucket) == bucket or bucket == 65_536


@settings(max_examples=25)
@given(
    categories=st.integers(1, 300),
    chunk=st.integers(1, 200),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    sliding=st.booleans(),
)
def test_what_lives_at_once_lies_apart(
    manifest: Manifest, categories: int, chunk: int, size: tuple[int, int], sliding: bool
) -> None:
    layout = make_layout(manifest, categories, size, chunk, scratch=1000, sliding=sliding)
    order = sorted(layout.values, key=lambda value: value.offset)
    for index, one in enumerate(order):
        assert one.offset % 512 == 0
        assert one.offset + one.bytes <= layout.bytes
        for other in order[index + 1 :]:
            if other.offset >= one.offset + one.bytes:
                break
            assert one.last < other.first or other.last < one.first, (one.name, other.name)


def assert_aligned(layout: Layout) -> None:
    """Every tensor of every chunk begins where TensorRT takes it, and its rows are contiguous."""
    for call in layout.calls:
        if call.step.kind == "prompts":
            continue
        for name, view in {**call.reads, **call.writes}.items():
            if name != "canvas":  # no graph sees it
                assert view.offset % 256 == 0, (call.step, name, view.offset)
            value = view.value
            _, inside = divmod(view.start, value.step or value.bytes)
            row, between = divmod(inside, value.row_bytes)
            assert between == 0, (call.step, name)
            assert view.shape == value.shape or row + view.shape[0] <= (
                value.part or value.shape[0]
            ), (call.step, name)


def of_sizes(manifest: Manifest, **sizes: Any) -> Manifest:
    """A model of other sizes, with all its graphs."""
    model = dataclasses.replace(manifest.model, **sizes)
    size = dataclasses.replace(manifest.constants.preprocessing, size=model.image_size)
    constants = dataclasses.replace(manifest.constants, preprocessing=size)
    return made_up_stages(dataclasses.replace(manifest, model=model, constants=constants))


@pytest.fixture(scope="module")
def of_the_paper(manifest: Manifest) -> Manifest:
    """Of `vit-b-16`'s sizes."""
    sizes = {"image_size": 384, "grid": (24, 24), "logits": (96, 96)}
    return of_sizes(manifest, embed_dim=512, hidden_dim=128, sam_dim=256, blocks=4, **sizes)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("categories", [1, 19, 58, 59, 150, 847])
def test_what_a_graph_is_given_begins_at_an_aligned_place(
    manifest: Manifest, of_the_paper: Manifest, categories: int, chunk: int, sliding: bool
) -> None:
    for model in (manifest, of_the_paper):
        assert_aligned(make_layout(model, categories, (60, 80), chunk, sliding=sliding))


@settings(max_examples=20, deadline=None)
@given(
    categories=st.integers(1, 150),
    chunk=st.integers(1, 200),
    group=st.integers(4, 20),
    grid=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    width=st.integers(1, 40),
)
def test_whatever_the_sizes_of_a_model(
    manifest: Manifest,
    categories: int,
    chunk: int,
    group: int,
    grid: tuple[int, int],
    width: int,
) -> None:
    constants = dataclasses.replace(manifest.constants, group=group)
    odd = of_sizes(dataclasses.replace(manifest, constants=constants), grid=grid, embed_dim=width)
    layout = make_layout(odd, categories, (30, 40), chunk)
    assert_aligned(layout)
    rows = [call.where for call in layout.calls if call.step.kind == "correlation"]
    assert [slice(0, 0), *rows][-1].stop == layout.bucket
    assert all(one.stop == two.start for one, two in itertools.pairwise(rows))
    assert all(one.start % group == 0 for one in rows)
    assert layout.chunk <= whole_groups(chunk, group)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize(("categories", "chunk"), [(1, 16), (19, 16), (150, 64), (847, 128)])
def test_every_read_is_of_what_was_written_before(
    manifest: Manifest, categories: int, chunk: int, sliding: bool
) -> None:
    """And at a time when it lives."""
    layout = make_layout(manifest, categories, (30, 40), chunk, sliding=sliding)
    ready = {id(view.value) for view in layout.fixed.values()}
    ready |= {id(value) for value in layout.values if value.name in ("image", "weight")}
    for time, call in enumerate(layout.calls):
        for name, view in call.reads.items():
            assert id(view.value) in ready, (call.step, name)
            assert view.value.first <= time <= view.value.last, (call.step, name)
        for view in call.writes.values():
            assert view.value.first <= time <= view.value.last
            assert view.start + view.shape[0] * view.value.row_bytes <= view.value.bytes
            ready.add(id(view.value))


def test_the_arena_is_hardly_larger_than_what_lives_at_once(manifest: Manifest) -> None:
    layout = make_layout(manifest, 847, (480, 640), 128)
    assert layout.bytes < 1.05 * most_alive(layout)


@pytest.mark.parametrize("categories", [1, 19, 150, 847])
def test_scratch_begins_where_tensorrt_takes_it(manifest: Manifest, categories: int) -> None:
    """Its check asks for twice what its manual says."""
    for scratch in (1, 5000, 1 << 20):
        layout = make_layout(manifest, categories, (480, 641), 16, scratch=scratch)
        assert layout.fixed["scratch"].offset % 512 == 0


def test_a_vocabulary_lies_in_front_whatever_the_size_of_images(manifest: Manifest) -> None:
    for size in ((10, 10), (2000, 3000)):
        layout = make_layout(manifest, 20, size, 16)
        assert layout.fixed["active"].offset == 0
        assert layout.fixed["text"].offset == 512


def test_only_what_must_grows_with_the_categories(manifest: Manifest) -> None:
    few, many = (make_layout(manifest, count, (64, 64), 16) for count in (64, 640))
    names = {value.name for value in many.values if value.grows == "categories"}
    prompts = {"points", "point_labels", "regions", "probabilities"}
    assert names == {"text", "weight", "scores", "embedding", *prompts}
    each = (many.bytes - few.bytes) / (640 - 64)
    embedding = 2 * 32 * 16 * 16
    assert each < 1.5 * embedding


@pytest.mark.parametrize(
    ("categories", "size", "chunk"), [(0, (1, 1), 1), (65_536, (1, 1), 1), (1, (0, 1), 1)]
)
def test_sizes_out_of_range_are_refused(
    manifest: Manifest, categories: int, size: tuple[int, int], chunk: int
) -> None:
    with pytest.raises(InputError, match="expected 1 to 65535 categories"):
        make_layout(manifest, categories, size, chunk)


def test_the_plan_is_a_table(manifest: Manifest) -> None:
    layout = make_layout(manifest, 150, (480, 640), 32)
    plan = memory_plan(layout, slot_bytes=1000, backend_bytes=2_000_000, measured=True)
    assert plan.total_bytes == layout.bytes + 2_001_000
    lines = plan.table().splitlines()
    assert "160 categories in chunks of 32, images of 480×640" in lines[0]
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["embedding"].endswith("categories")
    assert f"{layout.bytes / 1e6:,.2f}" in by_name["arena"]
    assert "2.00" in by_name["graphs,"]
    # Five chunks of embeddings, and one that a graph writes while it reads another.
    assert by_name["embedding"].split("]")[1].split()[0] == "6"


def most_alive(layout: Layout) -> int:
    """Bytes that live at once, at the worst step."""
    return max(
        sum(value.bytes for value in layout.values if value.first <= time <= value.last)
        for time in range(len(layout.calls))
    )
