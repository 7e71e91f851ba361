"""The model in PyTorch, as one would run it: pixels in, labels out, on the CPU or on CUDA."""

import functools
import inspect
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from escnet.model import EscNet
from escnet.ppg import PromptSource, pseudo_prompts
from escnet_runtime.images import ImageArray

__all__ = ["Compiled", "Form", "TorchRun", "labels_on_host"]

#: "plain": nothing is shared between categories; "shared": as in the bundle's graphs.
Form: TypeAlias = Literal["plain", "shared"]
#: What torch.compile compiles for: the shapes it sees, or any shapes.
Compiled: TypeAlias = Literal["static", "dynamic"]
#: How often a piece of the model may be compiled: a few times for each number of categories.
_RECOMPILATIONS: Final = 256
_Labels = npt.NDArray[np.uint8 | np.uint16]
_Floats = npt.NDArray[np.float32]


class TorchRun:
    """(pixels uint8 [H,W,3], text embeddings float32 [N,D]) → labels [H,W] on the host.

    All categories are in one batch. Resize, normalisation, prompts, interpolation and argmax run in
    torch too.

    Args:
        model: with the type and on the device to run; several runs may share it.
        form: which form of the model to run.
        compiled: how to compile the whole image with torch.compile; eager by default.
        prompts: replaces the prompt generator.
    """

    def __init__(
        self,
        model: EscNet,
        *,
        form: Form,
        compiled: Compiled | None = None,
        prompts: PromptSource = pseudo_prompts,
    ) -> None:
        parameter = next(model.parameters())
        self._model, self._form, self._prompts = model, form, prompts
        self._device, self._dtype = parameter.device, parameter.dtype
        config = model.config
        self._side = config.clip.image_size
        self._mean = torch.tensor(config.image_mean, device=self._device)[:, None, None]
        self._std = torch.tensor(config.image_std, device=self._device)[:, None, None]
        self._text: tuple[_Floats, Tensor] | None = None
        self._clock: _Clock | None = None if compiled else _clock(self._device)
        self._run = functools.partial(_compiled(compiled) if compiled else _image, self)

    def __call__(self, pixels: ImageArray, text: _Floats) -> _Labels:
        """Labels, uint8 up to 256 categories, else uint16."""
        if self._text is None or self._text[0] is not text:
            self._text = text, torch.tensor(text, device=self._device)
        with torch.inference_mode(), self._watched():
            labels = self._run(torch.tensor(pixels, device=self._device), self._text[1])
            return labels_on_host(labels, len(text))

    @property
    def stages(self) -> dict[str, float] | None:
        """Milliseconds of each kind of stage in the last call; None if stages cannot be timed."""
        return None if self._clock is None else self._clock.milliseconds()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Time the model's own methods during one call, so that they are not copied here."""
        clock = self._clock
        if clock is None:
            yield
            return
        clock.begin()
        targets = _targets(self._model, self._form)
        for owner, name, kind in targets:
            setattr(owner, name, clock.timed(kind, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, _ in targets:
                delattr(owner, name)

    def _timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._clock is None else self._clock.timed(kind, function)

    def _preprocess(self, pixels: Tensor) -> Tensor:
        image = pixels.permute(2, 0, 1)[None].float()
        size = (self._side, self._side)
        image = functional.interpolate(image, size, mode="bilinear", antialias=True)
        # Rounded to whole levels, as a resize of uint8 images gives.
        levels = image.round().clamp(0, 255)
        return ((levels / 255 - self._mean) / self._std).to(self._dtype)

    def _label(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        full = functional.interpolate(logits[None].to(self._dtype), size, mode="bilinear")
        return full[0].argmax(dim=0)


def labels_on_host(labels: Tensor, categories: int) -> _Labels:
    """Labels [H,W] of so many categories, downloaded: uint8 up to 256, else uint16."""
    # torch's 16-bit type is signed, which suffices for the numbers of categories here.
    narrow, wide = (torch.uint8, np.uint8) if categories <= 256 else (torch.int16, np.uint16)
    return labels.to(narrow).cpu().numpy().astype(wide, copy=False)


def _image(run: TorchRun, pixels: Tensor, text: Tensor) -> Tensor:
    """Segment one image; a function, because torch.compile takes one."""
    model = run._model
    image = run._timed("preprocess", run._preprocess)(pixels)
    trace = model.segment(
        model.encode_image(image),
        text,
        plain=run._form == "plain",
        prompts=run._timed("prompts", run._prompts),
    )
    size = (pixels.shape[0], pixels.shape[1])
    labels: Tensor = run._timed("upsample_argmax", run._label)(trace.logits, size)
    return labels


def _compiled(kind: Compiled) -> Callable[..., Tensor]:
    # torch keeps compiled code by code object, so that one run's code would answer another's calls.
    # An older torch cannot isolate them, but a copy of the function has its own code object.
    own = types.FunctionType(_image.__code__.replace(co_name=f"_image_{kind}"), globals())
    known = inspect.signature(torch.compile).parameters
    wanted: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": _RECOMPILATIONS}
    more = {name: value for name, value in wanted.items() if name in known}
    if "recompile_limit" not in known:
        torch._dynamo.config.recompile_limit = _RECOMPILATIONS
    # Without this, torch would silently run eagerly beyond the limit.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    made: Callable[..., Tensor] = torch.compile(own, dynamic=kind == "dynamic", **more)
    return made


def _targets(model: EscNet, form: Form) -> list[tuple[Any, str, str]]:
    """Methods of the model that are stages: owner, name, kind."""
    found: list[tuple[Any, str, str]] = [
        (model, "encode_image", "image_encoder"),
        (model, "correlate", "correlation"),
        (model.decoder, "forward", "decoder"),
    ]
    for block in model.esc_blocks:
        found.append((block, "fuse", "fuse"))
        if form == "plain":
            found.append((block.sam, "forward_plain", "sam"))
            found.append((block.image_guidance, "forward", "image"))
            found.append((block.text_guidance, "forward_plain", "text"))
        else:
            found.append((block.sam, "forward", "sam"))
            found.append((block, "refine_image", "image"))
            found.append((block, "refine_text", "text"))
    return found


class _Clock:
    """Times of one call by kind of stage; stages do not nest."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def begin(self) -> None:
        """Forget the last call."""
        self._spent = {}

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``kind``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self._spent[kind] = self._spent.get(kind, 0.0) + 1e3 * (time.perf_counter() - start)
            return result

        return run

    def milliseconds(self) -> dict[str, float]:
        """Of the last call."""
        return dict(self._spent)


class _CudaClock(_Clock):
    """Times by events on the stream, which cost the call next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """Forget the last call."""
        self._events = []

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` between two events."""

        def run(*args: Any, **kwargs: Any) -> Any:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            result = function(*args, **kwargs)
            after.record()
            self._events.append((kind, before, after))
            return result

        return run

    def milliseconds(self) -> dict[str, float]:
        """Of the last call, which has ended: its labels are on the host."""
        spent: dict[str, float] = {}
        for kind, before, after in self._events:
            spent[kind] = spent.get(kind, 0.0) + before.elapsed_time(after)
        return spent


def _clock(device: torch.device) -> _Clock:
    return _CudaClock() if device.type == "cuda" else _Clock()
