"""Named tensors that must fit a module's, all of them or none."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from escnet_runtime.errors import InputError

__all__ = ["WeightsError", "copy_into", "fitted"]

_LISTED = 10
_OF_A_KIND = 5  # missing ones, and surplus ones, before any more of either
#: What the first parts of some names tell, the narrower layouts first.
_LAYOUTS: Final = (
    (("text_model.", "vision_model."), "Hugging Face's CLIPModel, not open_clip's layout"),
    (("vision_encoder.", "mask_decoder."), "Hugging Face's SamModel, not Meta's layout"),
    (("visual.", "text."), "open_clip's CustomTextCLIP, such as SigLIP or EVA, not its CLIP"),
    (("sam_mask_decoder.", "sam_prompt_encoder."), "a SAM 2"),
    (("mask_decoder.", "prompt_encoder."), "a SAM"),
    (("sem_seg_head.", "backbone."), "a segmenter of Detectron2, such as CAT-Seg"),
    (("visual.", "transformer."), "a CLIP"),
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class WeightsError(InputError):
    """A file of weights cannot be read, or does not fit the model."""


def fitted(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, advice: str = ""
) -> dict[str, Tensor]:
    """The tensors, converted to the types of those expected.

    Args:
        tensors: what a file holds; float16, bfloat16, float32 or float64.
        expected: what a module has, under the same names (``Module.state_dict()``).
        source: what messages call the file.
        advice: the end of the message, after a full stop: what is expected, and what to do.

    Raises:
        WeightsError: tensors are missing, surplus, of another shape, not floating-point, or hold
            NaN or infinity (in the module's type). Ten are named, of missing and surplus ones both,
            the rest counted; a known layout of something else is named.
    """
    missing = [
        f"missing {name}, expected {_form(expected[name])}"
        for name in expected
        if name not in tensors
    ]
    surplus = [
        f"surplus {name}, {_form(tensors[name])}" for name in tensors if name not in expected
    ]
    problems = []
    result = {}
    for name, want in expected.items():
        if name in tensors:
            problem = _misfit(name, tensors[name], want)
            if problem is None:
                result[name] = tensors[name].to(want.dtype)
                problem = _not_finite(name, result[name])
            problems += [] if problem is None else [problem]
    if problems or missing or surplus:
        layout = _layout(list(tensors)) if 4 * len(missing) > len(expected) else ""
        if layout == _layout(list(expected)):
            layout = ""  # of another size
        problems = [
            *missing[:_OF_A_KIND],
            *surplus[:_OF_A_KIND],
            *problems,
            *missing[_OF_A_KIND:],
            *surplus[_OF_A_KIND:],
        ]
        raise WeightsError(f"{source} does not fit the model{layout}: {listed(problems)}.{advice}")
    return result


def _layout(names: Sequence[str]) -> str:
    """What else the tensors are, as a clause; empty where that is not known."""
    prefix = names[0].partition(".")[0] + "." if names else ""
    if len(names) > 1 and all(name.startswith(prefix) for name in names):
        return f", it has {prefix!r} in front of every name"
    for starts, layout in _LAYOUTS:
        if all(any(name.startswith(start) for name in names) for start in starts):
            return f", it looks like {layout}"
    return ""


def listed(problems: list[str]) -> str:
    """The first ten, and how many more there are."""
    rest = len(problems) - _LISTED
    return "; ".join(problems[:_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def copy_into(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor, already checked, into the first, without a gradient's trace."""
    with torch.no_grad():
        for target, value in pairs:
            target.copy_(value)


def _misfit(name: str, got: Tensor, want: Tensor) -> str | None:
    if got.is_meta:
        return f"{name} is on the meta device, it has a shape and no numbers"
    if got.layout != torch.strided or got.dtype not in _FLOATS:
        return f"{name} is {_form(got)}, expected floating-point numbers"
    if got.shape != want.shape:
        return f"{name} is {_form(got)}, expected {_form(want)}"
    return None


def _not_finite(name: str, value: Tensor) -> str | None:
    count = int(value.numel() - value.isfinite().sum())
    if not count:
        return None
    kind = str(value.dtype).removeprefix("torch.")
    return f"{name} holds {count} values that are NaN or infinite in {kind}, expected none"


def _form(tensor: Tensor) -> str:
    """Type and shape, such as "float32 [3, 4]"."""
    kind = str(tensor.dtype).removeprefix("torch.")
    layout = "" if tensor.layout == torch.strided else f"{tensor.layout} ".removeprefix("torch.")
    return f"{layout}{kind} {list(tensor.shape)}"
