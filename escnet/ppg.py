"""Pseudo Prompt Generator in torch: the decisions of ``escnet_runtime.ppg``, bit for bit.

That module's docstring is the specification; this one is batched over the categories and runs on
the device of its input. Each is written for what it runs on; the tests hold them equal.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from escnet_runtime.errors import InputError
from escnet_runtime.ppg import MAX_PIXELS, PpgConstants

__all__ = ["PromptSource", "TorchPrompts", "pseudo_prompts"]

_FIELD_BITS = 20  # no sum of coordinates passes 1024 * 1023 < 2^20
_FIELD = (1 << _FIELD_BITS) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TorchPrompts:
    """``escnet_runtime.ppg.Prompts`` as tensors on one device; same shapes, types and meaning.

    Only ``probabilities`` carries gradients.
    """

    points: Tensor
    point_labels: Tensor
    regions: Tensor
    probabilities: Tensor


#: (scores float32 [N, h, w], constants) → prompts: :func:`pseudo_prompts`, or what replaces it.
PromptSource: TypeAlias = Callable[[Tensor, PpgConstants], TorchPrompts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Grid:
    """Coordinates of the flattened pixels, int64 [P]."""

    x: Tensor
    y: Tensor


def pseudo_prompts(scores: Tensor, constants: PpgConstants) -> TorchPrompts:
    """Turn correlation maps, float32 [N,h,w] with h*w up to ``MAX_PIXELS``, into prompts.

    Points, labels and regions are discrete: no gradient flows through their choice. Gradients
    reach ``scores`` through the probabilities, where the peak is an ordinary maximum (tied peaks
    share its gradient). On a CUDA device nothing waits for the device.

    Raises InputError for another shape or type.
    """
    _check_scores(scores)
    n, h, w = scores.shape
    # NaN is as far from the foreground as -inf, and from here on the same.
    usable = scores.flatten(1).masked_fill(scores.flatten(1).isnan(), -torch.inf)
    probabilities = _probabilities(usable, constants.temperature).view(n, h, w)
    points, point_labels, regions = _Decisions.apply(usable.view(n, h, w), constants)
    return TorchPrompts(
        points=points,
        point_labels=point_labels,
        regions=regions,
        probabilities=probabilities,
    )


class _Decisions(torch.autograd.Function):
    """Points, their labels and regions of maps without NaN, float32 [N,h,w]; see there.

    A function of its own for the sake of ``torch.vmap``, which a training batches images with: the
    maps of all images are decided as one set, whatever control flow that takes.
    """

    @staticmethod
    def forward(usable: Tensor, constants: PpgConstants) -> tuple[Tensor, Tensor, Tensor]:
        """float32 [N,K,2], int32 [N,K] and int32 [N,h,w]."""
        return _decisions(usable, constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """No gradient passes."""
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None]:
        """Never asked for anything."""
        return None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None], usable: Tensor, constants: PpgConstants
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        """The maps of a batch one behind the other."""
        batch = usable.movedim(in_dims[0], 0)
        found = _Decisions.apply(batch.flatten(0, 1), constants)
        shape = batch.shape[:2]
        return tuple(one.unflatten(0, shape) for one in found), (0, 0, 0)


def _decisions(usable: Tensor, constants: PpgConstants) -> tuple[Tensor, Tensor, Tensor]:
    n, h, w = usable.shape
    flat = usable.flatten(1)
    threshold = flat.amax(1, keepdim=True) + constants.threshold_offset
    lowest = torch.finfo(torch.float32).min
    foreground = (flat >= threshold.clamp(min=lowest)).view(n, h, w)  # never -inf
    pixels = torch.arange(h * w, device=usable.device)
    grid = _Grid(x=pixels % w, y=pixels // w)
    seeds = _seeds(flat, foreground, grid, constants.regions)
    labels = _lloyd(seeds, foreground, grid, constants.iterations)
    points, point_labels = _points(flat, labels.flatten(1), grid, constants.regions)
    return points, point_labels, labels.int()


def _check_scores(scores: object) -> None:
    if not isinstance(scores, Tensor):
        raise InputError(f"scores are {type(scores).__name__}; expected a tensor [N,h,w]")
    if scores.dtype != torch.float32:
        raise InputError(f"scores are {scores.dtype}; expected float32: call .float() first")
    if scores.ndim != 3 or 0 in scores.shape:
        raise InputError(f"scores have shape {list(scores.shape)}; expected a non-empty [N,h,w]")
    if scores.shape[1] * scores.shape[2] > MAX_PIXELS:
        h, w = scores.shape[1:]
        raise InputError(f"scores have {h}x{w} pixels a map; at most {MAX_PIXELS} are supported")


def _probabilities(usable: Tensor, temperature: float) -> Tensor:
    """exp((score - peak) / temperature), 0 where the score is NaN or -inf, 1 at a peak of +inf."""
    peak = usable.amax(1, keepdim=True)
    # An infinite peak is not subtracted: inf - inf would put NaN into values and gradients.
    below = usable - peak.masked_fill(peak.isinf(), 0.0)
    below = below.masked_fill(peak.isposinf() & ~usable.isposinf(), -torch.inf)
    below = below.masked_fill(usable.isposinf(), 0.0)
    return torch.exp(below / temperature)


def _seeds(usable: Tensor, foreground: Tensor, grid: _Grid, regions: int) -> Tensor:
    """The peak, then farthest-point seeds, as centroids int64 [3,N,K]: count 1, x, y.

    When every foreground pixel is a seed, the rest repeat one and so stay empty.
    """
    nearest = torch.where(foreground.flatten(1), 2 * MAX_PIXELS**2, -1)
    seeds = [usable.argmax(1)]  # documented: the first of equals, so the lowest pixel
    for _ in range(1, regions):
        x, y = grid.x[seeds[-1]][:, None] - grid.x, grid.y[seeds[-1]][:, None] - grid.y
        nearest = torch.minimum(nearest, x * x + y * y)
        seeds.append(nearest.argmax(1))
    pixel = torch.stack(seeds, 1)
    return torch.stack([torch.ones_like(pixel), grid.x[pixel], grid.y[pixel]])


def _lloyd(centroids: Tensor, foreground: Tensor, grid: _Grid, iterations: int) -> Tensor:
    """Region of every pixel after k-means, int8 [N,h,w], -1 for background."""
    for _ in range(iterations):
        moved = _means(centroids, _nearest(centroids, foreground), grid)
        # Only a short cut, and only where asking does not stall a queue of kernels.
        settled = foreground.device.type == "cpu" and torch.equal(moved, centroids)
        centroids = moved
        if settled:
            break
    return _nearest(centroids, foreground)


def _nearest(centroids: Tensor, foreground: Tensor) -> Tensor:
    """Nearest centroid of every foreground pixel, int8 [N,h,w]; the lowest region on ties.

    ``escnet_runtime.ppg`` derives the comparison: a term per row against a term per column, exact
    in int64. Region b is nearest among the regions up to b if it is strictly nearer than each
    earlier one; the last b of which that holds is nearest of all.
    """
    h, w = foreground.shape[1:]
    earlier, later = torch.tril_indices(
        centroids.shape[2], centroids.shape[2], -1, device=foreground.device
    ).flip(0)
    (n, r_x, r_y), (m, s_x, s_y) = centroids[:, :, earlier], centroids[:, :, later]
    constant = n * n * (s_x * s_x + s_y * s_y) - m * m * (r_x * r_x + r_y * r_y)
    slope_x, slope_y = 2 * m * n * (m * r_x - n * s_x), 2 * m * n * (m * r_y - n * s_y)
    ys, xs = (torch.arange(size, device=foreground.device) for size in (h, w))
    by_row = (constant[:, :, None] + slope_y[:, :, None] * ys)[:, :, :, None]
    by_column = (-slope_x[:, :, None] * xs)[:, :, None]
    nearer = by_row < by_column  # [N,K(K-1)/2,h,w], ordered by the later region
    labels = foreground.to(torch.int8) - 1
    for b in range(1, centroids.shape[2]):
        first_pair = b * (b - 1) // 2
        wins = nearer[:, first_pair : first_pair + b].all(1)
        labels = labels.masked_fill(wins & foreground, b)
    return labels


def _means(centroids: Tensor, labels: Tensor, grid: _Grid) -> Tensor:
    """One Lloyd step. Count and both sums travel in one integer; an empty region stays put."""
    packed = (1 << 2 * _FIELD_BITS) | (grid.x << _FIELD_BITS) | grid.y
    regions = torch.arange(centroids.shape[2], device=labels.device)
    owned = labels.flatten(1)[:, None] == regions[:, None]
    sums = torch.where(owned, packed, 0).sum(2)
    count, sum_x = sums >> 2 * _FIELD_BITS, (sums >> _FIELD_BITS) & _FIELD
    return torch.where(count > 0, torch.stack([count, sum_x, sums & _FIELD]), centroids)


def _points(usable: Tensor, labels: Tensor, grid: _Grid, regions: int) -> tuple[Tensor, Tensor]:
    """The best pixel of every region: points float32 [N,K,2] and labels int32 [N,K]."""
    owned = labels[:, None] == torch.arange(regions, device=labels.device)[:, None]
    best = usable[:, None].masked_fill(~owned, -torch.inf).argmax(2)
    found = owned.any(2)
    points = torch.stack([grid.x[best], grid.y[best]], 2) * found[:, :, None]
    return points.float(), torch.where(found, 1, -1).int()
