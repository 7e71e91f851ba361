"""Opens implementations and runs them, in the measuring process."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from escnet_runtime.backends import GraphFile
from escnet_runtime.bundle import Bundle
from escnet_runtime.errors import BackendError
from escnet_runtime.images import ImageArray
from escnet_runtime.lanes import usable_cores
from escnet_runtime.segmenter import Segmenter
from escnet_runtime.vocabulary import Vocabulary

from ..stages import by_kind
from .plan import Variant

if TYPE_CHECKING:
    from escnet.model import EscNet
    from escnet_runtime.backends.openvino import OpenVinoBackend

    from .cat_seg import CatSeg
    from .torch_runs import TorchRun

__all__ = ["Order", "Run", "Workbench", "missing_extra", "save_vocabularies"]

_Labels = npt.NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The order for a measuring process.

    Attributes:
        bundle: its folder.
        model: what PyTorch runs: a preset, or a checkpoint's absolute path; None for nothing.
        image: an ``.npy`` of uint8 [H,W,3].
        texts: an ``.npz`` of vocabularies, from :func:`save_vocabularies`.
        gpu: whether everything runs on the first GPU.
        image_size: px a side of PyTorch's image, if it is not the preset's.
        cat_seg: a checkout of CAT-Seg, for the implementation of that name.
    """

    bundle: str
    model: str | None
    image: str
    texts: str
    gpu: bool
    cat_seg: str | None = None
    image_size: int | None = None


class Run(Protocol):
    """One implementation, ready."""

    @property
    def chunk(self) -> int | None:
        """Categories at a time; None for all in one batch."""

    def __call__(self, pixels: ImageArray, vocabulary: Vocabulary) -> _Labels:
        """From pixels to labels, both on the host."""

    def stages(self) -> dict[str, float] | None:
        """Milliseconds of each kind of stage in the last call; None if stages cannot be timed."""

    def threads(self) -> dict[str, int]:
        """Threads by library."""


def save_vocabularies(path: Path, vocabularies: Mapping[int, Vocabulary]) -> None:
    """Write vocabularies of one model, by number of categories, for the processes that measure."""
    arrays: dict[str, Any] = {}
    for count, one in vocabularies.items():
        arrays[f"names-{count}"] = np.array(one.names)
        arrays[f"embeddings-{count}"] = one.embeddings
        arrays[f"label-of-{count}"] = one.label_of
        arrays["templates"], arrays["model"] = np.array(one.templates), np.array(one.model)
    np.savez(path, **arrays)


def missing_extra(variant: Variant, *, gpu: bool) -> str | None:
    """Why a variant cannot run here, with what to install; None if it can."""
    needed: list[tuple[str, str]] = []
    if variant.torch:
        needed.append(("torch", "torch"))
        needed.append(("escnet", "torch"))
    if variant.implementation == "torch-naive-ppg":
        needed.append(("sklearn", "baselines"))
    if variant.implementation == "openvino":
        needed.append(("openvino", "baselines"))
    if variant.peer:
        needed += [("einops", "baselines"), ("timm", "baselines")]
    for module, extra in needed:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: install escnet-bench[{extra}]"
    if variant.implementation.startswith("tensorrt") and not gpu:
        return "it runs on NVIDIA's GPUs, and none is visible here"
    if variant.implementation == "openvino" and gpu:
        return "it is compared on CPUs alone"
    return None


@dataclass(slots=True)
class Workbench:
    """Opens implementations; those that share a model or a bundle share it."""

    order: Order
    bundle: Bundle = field(init=False)
    _models: "dict[str, EscNet]" = field(default_factory=dict)
    _vocabularies: dict[int, Vocabulary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bundle = Bundle.open(Path(self.order.bundle))

    def open(self, variant: Variant) -> Run:
        """Make ``variant`` ready to be called.

        Raises:
            EscNetError: it cannot be opened.
        """
        if variant.peer:
            return _InTorch(self._cat_seg(variant))
        if variant.torch:
            return _InTorch(self._torch_run(variant))
        if variant.implementation == "openvino":
            from escnet_runtime.backends.openvino import OpenVinoBackend

            manifest = self.bundle.manifest
            graphs = {
                name: GraphFile.of(self.bundle.file(stage.file), stage)
                for name, stage in manifest.stages.items()
            }
            backend = OpenVinoBackend(graphs)
            return _InRuntime(Segmenter(self.bundle, backend), backend)
        suffix = "-cuda" if self.order.gpu and variant.implementation == "onnxruntime" else ""
        return _InRuntime(Segmenter(self.bundle, variant.implementation + suffix))

    def vocabulary(self, categories: int) -> Vocabulary:
        """The vocabulary of so many categories, which the command has embedded."""
        if categories not in self._vocabularies:
            with np.load(self.order.texts, allow_pickle=False) as saved:
                self._vocabularies[categories] = Vocabulary(
                    names=tuple(saved[f"names-{categories}"].tolist()),
                    embeddings=saved[f"embeddings-{categories}"],
                    label_of=saved[f"label-of-{categories}"],
                    templates=tuple(saved["templates"].tolist()),
                    model=str(saved["model"]),
                )
        return self._vocabularies[categories]

    def _torch_run(self, variant: Variant) -> "TorchRun":
        from escnet.ppg import pseudo_prompts

        from .torch_runs import TorchRun

        model = self._model(variant.precision)
        if variant.implementation == "torch-naive-ppg":
            from .naive_ppg import naive_prompts

            return TorchRun(model, form="plain", prompts=naive_prompts)
        compiled: Literal["static", "dynamic"] | None = None
        if variant.compiled:
            compiled = "dynamic" if variant.dynamic else "static"
        return TorchRun(model, form=variant.form, compiled=compiled, prompts=pseudo_prompts)

    def _cat_seg(self, variant: Variant) -> "CatSeg":
        from .cat_seg import CatSeg

        if self.order.cat_seg is None:
            raise BackendError("there is no checkout of CAT-Seg: --cat-seg FOLDER")
        model = self._model(variant.precision)
        device = next(model.parameters()).device
        return CatSeg(Path(self.order.cat_seg), model.config, device)

    def _model(self, precision: str) -> "EscNet":
        """The model in PyTorch, without its text encoder, which is not needed here."""
        if precision not in self._models:
            import torch

            if self.order.model is None:
                raise BackendError("there is no model in PyTorch for this bundle")
            # No TF32: float32 means float32.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            model = _loaded(self.order.model, self.order.image_size)
            model.clip.transformer = torch.nn.Identity()
            model.clip.token_embedding = torch.nn.Identity()
            kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
            device = "cuda" if self.order.gpu else "cpu"
            self._models[precision] = (
                model.eval().requires_grad_(False).to(device=device, dtype=kind)
            )
        return self._models[precision]


def _loaded(model: str, image_size: int | None) -> "EscNet":
    """A checkpoint's model if it is a path, else a preset's."""
    if Path(model).is_absolute():
        from escnet.weights import load_checkpoint

        return load_checkpoint(Path(model)).model
    from ..subjects import load_model

    return load_model(model, image_size)[0]


@dataclass(slots=True)
class _InTorch:
    run: "TorchRun | CatSeg"
    chunk: int | None = None

    def __call__(self, pixels: ImageArray, vocabulary: Vocabulary) -> _Labels:
        labels = self.run(pixels, vocabulary.embeddings)
        # From rows of distinct categories to indices of the names given, as the runtime does.
        return vocabulary.label_of[labels].astype(labels.dtype)

    def stages(self) -> dict[str, float] | None:
        return self.run.stages

    def threads(self) -> dict[str, int]:
        import torch

        return {"torch": torch.get_num_threads()}


@dataclass(slots=True)
class _InRuntime:
    segmenter: Segmenter
    openvino: "OpenVinoBackend | None" = None
    _last: tuple[ImageArray, Vocabulary] | None = None

    @property
    def chunk(self) -> int | None:
        return self.segmenter.chunk

    def __call__(self, pixels: ImageArray, vocabulary: Vocabulary) -> _Labels:
        self.segmenter.pipeline.clock.seconds.clear()
        self._last = pixels, vocabulary
        return self.segmenter(pixels, vocabulary).labels

    def stages(self) -> dict[str, float] | None:
        device = self.segmenter.device_pipeline
        if device is None:
            spent: Mapping[str, float] = self.segmenter.pipeline.clock.seconds
            return by_kind({stage: 1e3 * seconds for stage, seconds in spent.items()})
        if self._last is None:
            return None
        pixels, vocabulary = self._last  # one more image, stage by stage
        return by_kind(device.profile(pixels, vocabulary.embeddings).device)

    def threads(self) -> dict[str, int]:
        if self.openvino is not None:
            return {"openvino": self.openvino.threads}
        if self.segmenter.device_pipeline is not None:
            return {}
        return {"onnxruntime": usable_cores()}  # its lanes share them
