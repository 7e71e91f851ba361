"""The Pseudo Prompt Generator: NumPy and torch choose the same pixels, and the right ones."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import escnet.ppg
from escnet.ppg import pseudo_prompts as torch_pseudo_prompts
from escnet_runtime import ppg, ppg_numpy
from escnet_runtime.errors import InputError
from escnet_runtime.ppg import PpgConstants, Prompts

Floats = npt.NDArray[np.float32]
Generator = Callable[[Floats, PpgConstants], Prompts]

DEFAULT = PpgConstants()
DECISIONS = ("points", "point_labels", "regions")


def on_device(scores: Floats, constants: PpgConstants, device: str = "cpu") -> Prompts:
    """The torch generator, its result as NumPy arrays."""
    prompts = torch_pseudo_prompts(torch.from_numpy(scores).to(device), constants)
    fields = {field.name: getattr(prompts, field.name) for field in dataclasses.fields(prompts)}
    return Prompts(**{name: value.cpu().numpy() for name, value in fields.items()})


def pseudo_prompts(scores: Floats, constants: PpgConstants) -> Prompts:
    """The runtime's prompts, which its form in C and NumPy's dense and sparse one agree on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESCNET_NATIVE", "1")
        prompts = ppg.pseudo_prompts(scores, constants)
        patch.setenv("ESCNET_NATIVE", "0")
        assert_same(ppg.pseudo_prompts(scores, constants), prompts)
        for few in (0, 1 << 40):
            patch.setattr(ppg_numpy, "_FEW", 0)
            patch.setattr(ppg_numpy, "_FEW_IN_ALL", few)
            assert_same(ppg.pseudo_prompts(scores, constants), prompts)
    return prompts


both = pytest.mark.parametrize("generate", [pseudo_prompts, on_device], ids=["numpy", "torch"])
quick = settings(deadline=None, max_examples=150, database=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors here are too small for threads to pay."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(got: Prompts, expected: Prompts) -> None:
    for name in DECISIONS:
        a, b = getattr(got, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    np.testing.assert_allclose(got.probabilities, expected.probabilities, rtol=0, atol=1e-6)


# --- an independent, slow, obvious generator -----------------------------------------------------


def oracle(scores: Floats, constants: PpgConstants) -> Prompts:
    maps = [oracle_map(one, constants) for one in scores]
    return Prompts(
        points=np.array([m[0] for m in maps], np.float32),
        point_labels=np.array([m[1] for m in maps], np.int32),
        regions=np.array([m[2] for m in maps], np.int32).reshape(scores.shape),
        probabilities=np.array([m[3] for m in maps], np.float32).reshape(scores.shape),
    )


def oracle_map(scores: Floats, constants: PpgConstants) -> tuple[Any, Any, Any, Any]:
    """Points, labels, regions and probabilities of one map, as plain lists."""
    width = scores.shape[1]
    value = [float(v) for v in scores.ravel()]
    usable = [i for i, v in enumerate(value) if v > -math.inf]  # false for NaN
    points, labels, owner = (
        [(0, 0)] * constants.regions,
        [-1] * constants.regions,
        [-1] * len(value),
    )
    if not usable:
        return points, labels, owner, [0.0] * len(value)
    peak = max(value[i] for i in usable)
    offset = np.float32(constants.temperature) * np.float32(math.log(constants.alpha))
    with np.errstate(over="ignore"):
        threshold = float(np.float32(peak) + offset)
    foreground = [i for i in usable if value[i] >= threshold]
    place = {i: (Fraction(i % width), Fraction(i // width)) for i in foreground}

    for i, region in oracle_regions(foreground, value, place, constants).items():
        owner[i] = region
    for region in range(constants.regions):
        mine = [i for i in foreground if owner[i] == region]
        if mine:
            best = max(mine, key=lambda i: (value[i], -i))
            points[region], labels[region] = (best % width, best // width), 1
    return points, labels, owner, [oracle_probability(v, peak, constants) for v in value]


def oracle_probability(value: float, peak: float, constants: PpgConstants) -> float:
    if math.isnan(value) or value == -math.inf:
        return 0.0
    return 1.0 if value == peak else math.exp((value - peak) / constants.temperature)


def oracle_regions(
    foreground: list[int],
    value: list[float],
    place: dict[int, tuple[Fraction, Fraction]],
    constants: PpgConstants,
) -> dict[int, int]:
    def squared(a: tuple[Fraction, Fraction], b: tuple[Fraction, Fraction]) -> Fraction:
        return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2

    centroids = [place[max(foreground, key=lambda i: (value[i], -i))]]
    while len(centroids) < constants.regions:
        gap = {i: min(squared(place[i], c) for c in centroids) for i in foreground}
        farthest = max(foreground, key=lambda i: (gap[i], -i))
        if gap[farthest] == 0:
            break
        centroids.append(place[farthest])

    def assign() -> dict[int, int]:
        order = range(len(centroids))
        return {i: min(order, key=lambda k: (squared(place[i], centroids[k]), k)) for i in place}

    for _ in range(constants.iterations):
        owner, before = assign(), list(centroids)
        for k in range(len(centroids)):
            mine = [place[i] for i in foreground if owner[i] == k]
            if mine:
                x, y = (sum((p[axis] for p in mine), Fraction(0)) for axis in (0, 1))
                centroids[k] = (x / len(mine), y / len(mine))
        if centroids == before:
            break
    return assign()


# --- inputs --------------------------------------------------------------------------------------

LEVELS = [0.0, -0.0, 0.004, 0.008, 0.012, 0.1]
SPECIAL = [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45]

small_maps = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    elements=st.one_of(
        st.sampled_from(LEVELS), st.sampled_from(SPECIAL), st.floats(-1, 1, width=32)
    ),
)
small_constants = st.builds(
    PpgConstants,
    temperature=st.sampled_from([0.02, 0.5, 1e-30, 1e30]),
    alpha=st.sampled_from([0.5, 0.01, 1.0]),
    regions=st.integers(1, 8),
    iterations=st.integers(0, 10),
)


@st.composite
def large_maps(draw: st.DrawFn) -> Floats:
    """Maps of any size up to 1024 pixels: noise in a few levels, so that ties abound."""
    h = draw(st.one_of(st.integers(1, 32), st.integers(1, 1024)))
    w = draw(st.one_of(st.integers(1, min(32, 1024 // h)), st.integers(1, 1024 // h)))
    n = draw(st.integers(1, 4))
    levels = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = (rng.integers(0, levels, (n, h, w)) * np.float32(0.003)).astype(np.float32)
    odd = rng.random(scores.shape) < draw(st.sampled_from([0.0, 0.0, 0.1, 0.9]))
    scores[odd] = rng.choice(np.array(SPECIAL, np.float32), int(odd.sum()))
    return scores


def blobs(n: int, h: int, w: int, seed: int = 0, spread: float = 0.02) -> Floats:
    """Smooth maps: low-frequency waves of random phase."""
    rng = np.random.default_rng(seed)
    y, x = np.arange(h)[:, None] / h, np.arange(w)[None] / w
    phase = rng.uniform(0, 2 * np.pi, (n, 2, 1, 1))
    turns = rng.integers(1, 3, (n, 2, 1, 1))
    wave = np.sin(2 * np.pi * turns[:, 0] * y + phase[:, 0])
    return (spread * wave * np.sin(2 * np.pi * turns[:, 1] * x + phase[:, 1])).astype(np.float32)


# --- NumPy = torch = the obvious way -------------------------------------------------------------


@quick
@given(scores=small_maps, constants=small_constants)
def test_small_maps_match_the_oracle(scores: Floats, constants: PpgConstants) -> None:
    expected = oracle(scores, constants)
    assert_same(pseudo_prompts(scores, constants), expected)
    assert_same(on_device(scores, constants), expected)


@quick
@given(scores=large_maps())
def test_numpy_equals_torch_on_any_grid(scores: Floats) -> None:
    assert_same(pseudo_prompts(scores, DEFAULT), on_device(scores, DEFAULT))


@pytest.mark.parametrize("shape", [(24, 24), (1, 400), (400, 1), (9, 40)])
@pytest.mark.parametrize("kind", ["flat", "blobs"])
def test_large_maps_match_the_oracle(shape: tuple[int, int], kind: str) -> None:
    scores = np.zeros((1, *shape), np.float32) if kind == "flat" else blobs(1, *shape)
    expected = oracle(scores, DEFAULT)
    assert_same(pseudo_prompts(scores, DEFAULT), expected)
    assert_same(on_device(scores, DEFAULT), expected)


@pytest.mark.parametrize("shape", [(32, 32), (1, 1024), (1024, 1), (2, 512), (64, 16)])
def test_the_largest_grids_match_in_numpy_and_torch(shape: tuple[int, int]) -> None:
    scores = np.concatenate([blobs(3, *shape), np.zeros((1, *shape), np.float32)])
    scores[2, :, : shape[1] // 2] = math.nan
    assert_same(pseudo_prompts(scores, DEFAULT), on_device(scores, DEFAULT))


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 1000])
def test_any_number_of_categories(n: int) -> None:
    scores = blobs(n, 6, 8)
    assert_same(pseudo_prompts(scores, DEFAULT), on_device(scores, DEFAULT))


def test_a_region_that_empties_keeps_its_centroid() -> None:
    """Through the step itself: no map of a million random ones empties a region by its seeds."""
    row = np.ones((1, 1, 4), np.bool_)  # pixels 0 to 3; centroids at 1/2, 5/2 and 7 = 14/2
    centroids = np.array([[2, 2, 2], [1, 5, 14], [0, 0, 0]])[:, :, None]
    expected = np.array([[2, 2, 2], [1, 5, 14], [0, 0, 0]])
    in_numpy = ppg_numpy._means(centroids, np.moveaxis(row, 0, -1))
    np.testing.assert_array_equal(in_numpy[:, :, 0], expected)

    in_torch = torch.from_numpy(centroids).transpose(1, 2)
    labels = escnet.ppg._nearest(in_torch, torch.from_numpy(row))
    grid = escnet.ppg._Grid(x=torch.arange(4), y=torch.zeros(4, dtype=torch.int64))
    moved = escnet.ppg._means(in_torch, labels, grid)
    np.testing.assert_array_equal(moved[:, 0].numpy(), expected)


# --- invariants ----------------------------------------------------------------------------------


@both
@quick
@given(scores=large_maps())
def test_invariants(generate: Generator, scores: Floats) -> None:
    prompts = generate(scores, DEFAULT)
    n, h, w = scores.shape
    assert prompts.points.shape == (n, 5, 2)
    assert prompts.regions.shape == prompts.probabilities.shape == (n, h, w)
    assert set(np.unique(prompts.point_labels)) <= {-1, 1}
    assert prompts.regions.min() >= -1
    assert prompts.regions.max() < 5
    assert np.isfinite(prompts.probabilities).all()
    assert not prompts.probabilities[~(scores > -np.inf)].any()
    for c, k in np.ndindex(n, 5):
        x, y = prompts.points[c, k].astype(int)
        inside = prompts.regions[c] == k
        if prompts.point_labels[c, k] == -1:
            assert (x, y) == (0, 0)
            assert not inside.any()
        else:
            assert inside[y, x]
            assert scores[c, y, x] == scores[c][inside].max()


@both
@quick
@given(scores=large_maps())
def test_foreground_reaches_the_threshold_and_the_peak_is_a_point(
    generate: Generator, scores: Floats
) -> None:
    prompts = generate(scores, DEFAULT)
    usable = np.where(scores > -np.inf, scores, -np.inf)
    peak = usable.max(axis=(1, 2))
    with np.errstate(over="ignore"):
        threshold = peak + np.float32(DEFAULT.threshold_offset)
    reached = (usable >= threshold[:, None, None]) & (usable > -np.inf)
    np.testing.assert_array_equal(prompts.regions >= 0, reached)
    for c in range(len(scores)):
        y, x = divmod(int(usable[c].argmax()), scores.shape[2])
        used = prompts.points[c][prompts.point_labels[c] == 1].tolist()
        assert ([x, y] in used) == reached[c].any()


@both
def test_permuting_categories_permutes_prompts(generate: Generator) -> None:
    scores = blobs(20, 12, 12)
    order = np.random.default_rng(1).permutation(20)
    whole, permuted = generate(scores, DEFAULT), generate(scores[order], DEFAULT)
    for field in dataclasses.fields(Prompts):
        np.testing.assert_array_equal(
            getattr(permuted, field.name), getattr(whole, field.name)[order]
        )


@both
def test_chunks_of_categories_change_nothing(generate: Generator) -> None:
    scores = blobs(30, 12, 12)
    whole = generate(scores, DEFAULT)
    for start in range(0, 30, 7):
        rows = slice(start, start + 7)
        part = generate(scores[rows], DEFAULT)
        for field in dataclasses.fields(Prompts):
            np.testing.assert_array_equal(
                getattr(part, field.name), getattr(whole, field.name)[rows]
            )


def test_the_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = blobs(30, 12, 12)
    whole = pseudo_prompts(scores, DEFAULT)
    monkeypatch.setenv("ESCNET_NATIVE", "0")
    monkeypatch.setattr(ppg_numpy, "_BLOCK", 7)
    assert_same(pseudo_prompts(scores, DEFAULT), whole)


# --- particular maps -----------------------------------------------------------------------------


@both
def test_one_pixel_gives_one_point(generate: Generator) -> None:
    prompts = generate(np.full((1, 1, 1), 0.3, np.float32), DEFAULT)
    assert prompts.point_labels.tolist() == [[1, -1, -1, -1, -1]]
    assert prompts.regions.tolist() == [[[0]]]
    assert prompts.probabilities.tolist() == [[[1.0]]]


@both
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_map_without_a_usable_pixel_has_no_prompt(generate: Generator, value: float) -> None:
    scores = np.stack([np.full((3, 4), value, np.float32), np.zeros((3, 4), np.float32)])
    prompts = generate(scores, DEFAULT)
    assert (prompts.point_labels[0] == -1).all()
    assert (prompts.regions[0] == -1).all()
    assert not prompts.probabilities[0].any()
    assert (prompts.regions[1] >= 0).all()


@both
def test_infinite_peaks_are_the_foreground(generate: Generator) -> None:
    scores = np.array([[[math.inf, 0.0, math.inf, math.nan]]], np.float32)
    prompts = generate(scores, DEFAULT)
    assert prompts.regions.tolist() == [[[0, -1, 1, -1]]]
    assert prompts.probabilities.tolist() == [[[1.0, 0.0, 1.0, 0.0]]]


@both
def test_the_threshold_is_one_float32_addition(generate: Generator) -> None:
    peak = np.float32(0.7)
    edge = peak + np.float32(np.float32(0.02) * np.float32(math.log(0.5)))
    scores = np.array([[[peak, edge, np.nextafter(edge, np.float32(-1))]]], np.float32)
    assert generate(scores, DEFAULT).regions.tolist() == [[[0, 1, -1]]]


@pytest.mark.parametrize(
    ("temperature", "alpha", "offset"),
    [  # the last two tell the product of rounded factors from a rounded product
        (0.02, 0.5, "-0x1.c642ccp-7"),
        (0.02, 0.3, "-0x1.8a848ep-6"),
        (0.03, 0.3, "-0x1.27e36cp-5"),
    ],
)
def test_the_threshold_offset_is_rounded_as_specified(
    temperature: float, alpha: float, offset: str
) -> None:
    constants = PpgConstants(temperature=temperature, alpha=alpha)
    assert constants.threshold_offset == float.fromhex(offset)


@both
def test_a_view_that_is_not_contiguous_is_read_right(generate: Generator) -> None:
    scores = blobs(4, 10, 12)
    view = scores.transpose(0, 2, 1)[::2]
    assert_same(generate(view, DEFAULT), generate(view.copy(), DEFAULT))


# --- gradients -----------------------------------------------------------------------------------


def test_gradients_of_probabilities_are_those_of_a_softmax_relative_to_its_peak() -> None:
    scores = torch.tensor([[[0.10, 0.12, 0.09, 0.11]]], requires_grad=True)
    upstream = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    prompts = torch_pseudo_prompts(scores, DEFAULT)
    (prompts.probabilities * upstream).sum().backward()
    expected = (upstream * prompts.probabilities / DEFAULT.temperature).detach()
    expected[0, 0, 1] = expected[0, 0, 1] - expected.sum()
    torch.testing.assert_close(scores.grad, expected)
    assert not any(getattr(prompts, name).requires_grad for name in DECISIONS)


def test_gradients_stay_finite_beside_nan_and_infinity() -> None:
    rows = [[math.nan, 0.1, 0.11], [math.inf, 0.1, 0.2], [-math.inf, 0.1, 0.2], [math.nan] * 3]
    scores = torch.tensor(rows)[:, None].requires_grad_()
    torch_pseudo_prompts(scores, DEFAULT).probabilities.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.gpu
def test_the_gpu_chooses_the_same_pixels() -> None:
    for shape in [(24, 24), (32, 32), (1, 1024), (1024, 1)]:
        scores = np.concatenate([blobs(150, *shape), np.zeros((2, *shape), np.float32)])
        scores[1, :, ::3] = math.nan
        assert_same(on_device(scores, DEFAULT, "cuda"), pseudo_prompts(scores, DEFAULT))


# --- bad input -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4), (0, 4, 4), (1, 0, 4), (1, 4, 0)])
def test_other_shapes_are_refused(generate: Generator, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"shape \["):
        generate(np.zeros(shape, np.float32), DEFAULT)


@both
def test_too_many_pixels_are_refused(generate: Generator) -> None:
    with pytest.raises(InputError, match="25x41 pixels a map; at most 1024"):
        generate(np.zeros((1, 25, 41), np.float32), DEFAULT)


@both
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_types_are_refused(generate: Generator, dtype: type) -> None:
    with pytest.raises(InputError, match="expected float32"):
        generate(np.zeros((1, 2, 2), dtype), DEFAULT)


def test_another_kind_of_array_is_refused() -> None:
    anything: Any = [[[0.0]]]
    with pytest.raises(InputError, match="list; expected a NumPy array"):
        pseudo_prompts(anything, DEFAULT)
    with pytest.raises(InputError, match="list; expected a tensor"):
        torch_pseudo_prompts(anything, DEFAULT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "0.02"),
        ("alpha", 0.0),
        ("alpha", 1.5),
        ("alpha", math.nan),
        ("regions", 0),
        ("regions", 17),
        ("regions", 5.0),
        ("regions", True),
        ("iterations", -1),
        ("iterations", None),
    ],
)
def test_constants_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"PPG {name} is .*; expected"):
        dataclasses.replace(DEFAULT, **{name: value})
