"""The decoder: two guided up-sampling stages and a head, one category at a time.

The paper is silent beyond "U-Net style": layout and widths are CAT-Seg's. Each stage is a 2×2
transposed convolution, a concatenation with a skip feature and a 3×3 convolution; that is one
linear map of the category's embedding plus a term that all categories share, and it is computed as
such.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, self.grid), factor)


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
        height, width = x.shape[2:]
        raised = self.up.out_channels
        table = torch.tensor(_phase_table(), dtype=torch.float32, device=x.device)
        # The weights are composed in float32, whatever the model's type: they are constants.
        # k: output channel, a/b: phases, c: input channel, r/s: taps, o: raised channel.
        weight = torch.einsum(
            "artp,bsuq,kotu,copq->kabcrs",
            table,
            table,
            self.first.weight[:, :raised].float(),
            self.up.weight.float(),
        ).flatten(0, 2)
        phases = F.conv2d(x, weight.to(x.dtype), padding=1).unflatten(1, (-1, 2, 2))
        # Columns alternate between two phases, then rows do: less than half of what a pixel shuffle
        # takes on ONNX Runtime's CPU provider, which moves element by element in six dimensions.
        rows = [
            torch.stack(
                [phases[:, :, a, b, a : a + height, b : b + width] for b in range(2)], dim=4
            ).flatten(3)
            for a in range(2)
        ]
        return torch.stack(rows, dim=3).flatten(2, 3)

    def _shared(self, skip: Tensor) -> Tensor:
        """What no category changes: the skip's part and both biases, mind the border."""
        assert self.up.bias is not None
        bias = self.up.bias[None, :, None, None].expand(1, -1, *skip.shape[2:])
        out: Tensor = self.first(torch.cat([bias, skip], dim=1))
        return out

    def _finish(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(x))
        return F.relu(self.norm2(self.second(x)))


class Decoder(nn.Module):
    """``decoder``: embedding [n, C, h, w] and the two skips → logits float32 [n, 4h, 4w]."""

    def __init__(self, first: UpStage, second: UpStage, head: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, head

    def forward(
        self, embedding: Tensor, skip0: Tensor, skip1: Tensor, *, plain: bool = False
    ) -> Tensor:
        """skip0 is [1, ·, 2h, 2w], skip1 is [1, ·, 4h, 4w]."""
        for stage, skip in ((self.first, skip0), (self.second, skip1)):
            embedding = stage.forward_plain(embedding, skip) if plain else stage(embedding, skip)
        out: Tensor = self.head(embedding)
        return out[:, 0].float()
