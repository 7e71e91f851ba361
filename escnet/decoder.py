"""The decoder: two guided up-sampling stages and a head, one category at a time.

The paper is silent beyond "U-Net style": layout and widths are CAT-Seg's. Each stage is a 2×2
transposed convolution, a concatenation with a skip feature and a 3×3 convolution; that is one
linear map of the category's embedding plus a term that all categories share, and it is computed as
such.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exporting import exporting
from .precision import composed

__all__ = ["Decoder", "SkipProjection", "UpStage"]


class SkipProjection(nn.Module):
    """CLIP tokens of an earlier block → a skip feature at 2 or 4 times the grid.

    Args:
        up: transposed convolution whose stride is its kernel, width → C_up.
        project: 3×3 convolution, padding 1.
        grid: (h, w) of the tokens.
    """

    def __init__(self, up: nn.ConvTranspose2d, project: nn.Conv2d, grid: tuple[int, int]) -> None:
        super().__init__()
        if up.stride != up.kernel_size or up.kernel_size[0] != up.kernel_size[1]:
            raise ValueError(f"the kernel is {up.kernel_size}, expected the stride, {up.stride}")
        self.up, self.project, self.grid = up, project, grid

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, h · w, width] → [b, skip channels, f · h, f · w]."""
        out: Tensor = F.relu(self.project(self._raised(tokens)))
        return out

    def forward_plain(self, tokens: Tensor) -> Tensor:
        """The same through the transposed convolution itself: the reference."""
        maps = tokens.transpose(1, 2).unflatten(2, self.grid)
        out: Tensor = F.relu(self.project(self.up(maps)))
        return out

    def _raised(self, tokens: Tensor) -> Tensor:
        """The transposed convolution: no two of its f×f patches touch, so each is one linear map
        of its token. TensorRT-RTX 1.7.1 does not type a bf16 ConvTranspose ("node_convolution_1").
        """
        assert self.up.bias is not None
        factor = self.up.kernel_size[0]
        bias = self.up.bias[:, None].expand(-1, factor**2).flatten()
        patches = tokens.to(bias.dtype) @ self.up.weight.flatten(1) + bias
        return _pixel_shuffle(patches.transpose(1, 2).unflatten(2, self.grid), factor)


def _pixel_shuffle(maps: Tensor, factor: int) -> Tensor:
    """[n, c · f², h, w] → [n, c, f · h, f · w]."""
    if maps.dtype != torch.bfloat16:
        return F.pixel_shuffle(maps, factor)
    # The same as its parts: ONNX Runtime's CUDA provider has no DepthToSpace for bfloat16.
    apart = maps.unflatten(1, (-1, factor, factor)).permute(0, 1, 4, 2, 5, 3)
    shuffled: Tensor = apart.flatten(4, 5).flatten(2, 3)
    return shuffled


def _interleaved(phases: Tensor) -> Tensor:
    """The four phases of a grid twice as fine, without its border: [n, 2 · 2 · c, h + 1, w + 1] →
    [n, c, 2h, 2w].

    A pixel shuffle whose phases come before the channels, done with channels last: so what moves
    are runs of c numbers, not single ones. ONNX Runtime's DepthToSpace takes as long as the
    convolution before it (measured, 1.32).
    """
    apart = phases.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
    fine: Tensor = apart.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)
    return fine[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def _phase_table() -> list[list[list[list[float]]]]:
    """R[a][r][t][p] = 1 where output row 2i + a reads, through tap t of a 3-tap convolution, the
    row that phase p of a stride-2 transposed convolution makes of low-resolution row i - 1 + a + r.
    """
    table = [[[[0.0] * 2 for _ in range(3)] for _ in range(2)] for _ in range(2)]
    for phase in range(2):
        for tap in range(3):
            row = phase + tap - 1  # relative to the high-resolution row 2i
            table[phase][row // 2 + 1 - phase][tap][row % 2] = 1.0
    return table


class UpStage(nn.Module):
    """Up-sample by two, join the skip feature, two 3×3 convolutions with GroupNorm and ReLU.

    Args:
        up: 2×2 transposed convolution with stride 2, C_in → C_up.
        first: 3×3 convolution of [up ; skip], padding 1.
        second: 3×3 convolution, padding 1.
    """

    def __init__(
        self,
        *,
        up: nn.ConvTranspose2d,
        first: nn.Conv2d,
        norm1: nn.GroupNorm,
        second: nn.Conv2d,
        norm2: nn.GroupNorm,
    ) -> None:
        super().__init__()
        self.up, self.first, self.norm1 = up, first, norm1
        self.second, self.norm2 = second, norm2

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[n, C_in, h, w] and [1, C_skip, 2h, 2w] → [n, C_out, 2h, 2w]."""
        return self._finish(self._own(x) + self._shared(skip))

    def forward_plain(self, x: Tensor, skip: Tensor) -> Tensor:
        """The same through the concatenation itself: the reference."""
        raised = self.up(x)
        both = torch.cat([raised, skip.expand(raised.shape[0], -1, -1, -1)], dim=1)
        return self._finish(self.first(both))

    def _own(self, x: Tensor) -> Tensor:
        """The category's part: transposed convolution and convolution composed, no bias.

        Each output pixel sees 2×2 low-resolution pixels, with other weights for each of the four
        output phases: about half the multiplications.
        """
        raised = self.up.out_channels
        table = torch.tensor(_phase_table(), dtype=torch.float32, device=x.device)
        # The weights are composed in float32, whatever the model's type: they are constants.
        # k: output channel, a/b: phases, c: input channel, r/s: taps, o: raised channel.
        weight = composed(
            "artp,bsuq,kotu,copq->abkcrs",
            table,
            table,
            self.first.weight[:, :raised],
            self.up.weight,
        )
        # Row j of h + 1 holds what becomes output row 2j - 1 in phase 1 and row 2j in phase 0. With
        # the phases in that order they interleave as they are to lie.
        weight = weight.flip(0, 1).flatten(0, 2)
        return _interleaved(F.conv2d(x, weight.to(x.dtype), padding=1))

    def _shared(self, skip: Tensor) -> Tensor:
        """What no category changes: the skip's part and both biases, mind the border."""
        assert self.up.bias is not None
        bias = self.up.bias[None, :, None, None].expand(1, -1, *skip.shape[2:])
        out: Tensor = self.first(torch.cat([bias, skip], dim=1))
        return out

    def _finish(self, x: Tensor) -> Tensor:
        x = F.relu(_group_norm(self.norm1, x))
        return F.relu(_group_norm(self.norm2, self.second(x)))


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """``norm(x)``; in a graph, a scale and a shift of each channel, in float32.

    ONNX has it as an InstanceNormalization of reshaped maps, and the reshaping costs a runtime that
    holds channels last two moves of all its maps: half of the decoder's time in OpenVINO.
    """
    if not exporting():
        out: Tensor = norm(x)
        return out
    wide, pixels = x.float(), x.shape[2] * x.shape[3]

    def of_group(channels: Tensor) -> Tensor:
        """The mean over the channels of a group, for each channel: [n, C] → [n, C, 1, 1]."""
        groups = channels.unflatten(1, (norm.num_groups, -1))
        means: Tensor = groups.mean(dim=2, keepdim=True).expand_as(groups)
        return means.flatten(1)[:, :, None, None]

    mean = of_group(wide.mean(dim=(2, 3)))
    # Two sums that read the maps once each. The difference of means loses (mean / deviation)² of
    # float32's 24 bits, which is little of what a convolution gives.
    squares = torch.linalg.vector_norm(wide, dim=(2, 3)).square() / pixels
    variance = (of_group(squares) - mean.square()).clamp(min=0.0)  # rounding may leave less than 0
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.float()[:, None, None]
    return (wide * scale + (norm.bias.float()[:, None, None] - mean * scale)).to(x.dtype)


class Decoder(nn.Module):
    """``decoder``: embedding [n, h, w, C] and the two skips → logits float32 [n, 4h, 4w]."""

    def __init__(self, first: UpStage, second: UpStage, head: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, head

    def forward(
        self, embedding: Tensor, skip0: Tensor, skip1: Tensor, *, plain: bool = False
    ) -> Tensor:
        """skip0 is [1, ·, 2h, 2w], skip1 is [1, ·, 4h, 4w]."""
        x = embedding.permute(0, 3, 1, 2)
        for stage, skip in ((self.first, skip0), (self.second, skip1)):
            x = stage.forward_plain(x, skip) if plain else stage(x, skip)
        out: Tensor = self.head(x)[:, 0] if plain else _one_channel(self.head, x)
        return out.float()


def _one_channel(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """``convolution(x)`` of one output channel; in a float32 graph, a map for each of its taps and
    their sum: [n, C, h, w] → [n, h, w].

    Convolutions on a CPU make 8 or 16 channels at once, whether they are wanted or not; the taps
    of a 3×3 kernel are nine of them and need no neighbours. In less than float32 each map would be
    rounded.
    """
    if not exporting() or x.dtype != torch.float32:
        out: Tensor = convolution(x)[:, 0]
        return out
    assert convolution.bias is not None
    height, width = x.shape[2:]
    rows, columns = convolution.kernel_size
    taps = F.conv2d(x, convolution.weight[0].flatten(1).T[:, :, None, None])
    taps = F.pad(taps, (columns // 2, columns // 2, rows // 2, rows // 2))
    found: Tensor = convolution.bias
    for tap in range(rows * columns):
        top, left = divmod(tap, columns)
        found = found + taps[:, tap, top : top + height, left : left + width]
    return found
