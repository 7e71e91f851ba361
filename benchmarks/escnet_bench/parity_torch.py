"""Float32 PyTorch as the reference that a bundle is compared with. Imported only when needed."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from escnet.model import EscNet
from escnet.presets import preset
from escnet.weights import (
    SHIPPED,
    LoadedCheckpoint,
    load_checkpoint,
    load_preset,
    resized,
    shipped_checkpoint,
)
from escnet_export.parity import feeds_of
from escnet_export.reference import Call, TorchBackend
from escnet_export.report import StageError
from escnet_runtime.backends.base import Array, Backend, Tensor
from escnet_runtime.errors import InputError
from escnet_runtime.manifest import FileRef, Manifest
from escnet_runtime.segmenter import Segmenter

from .parity import StageFigure, golden_figures
from .torch_checkpoint import checkpoint_reference, model_segmenter

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

__all__ = ["TorchReference", "Weights", "shipped_weights"]

#: Largest relative L2 between float32 runs of the same weights on any two machines; with other
#: weights it is 0.1 and more.
_SAME_WEIGHTS: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Weights:
    """A model in float32 with what identifies it; ``name`` is for messages."""

    name: str
    loaded: LoadedCheckpoint
    source: FileRef

    @classmethod
    def of_checkpoint(cls, path: Path) -> "Self":
        """The weights of a checkpoint.

        Raises:
            WeightsError: the file is no checkpoint of this project.
        """
        return cls(f"checkpoint {path.name}", load_checkpoint(path), checkpoint_reference(path))

    def like(self, manifest: Manifest) -> "Self":
        """These weights at a bundle's image size, as ``escnet-export --image-size`` gives it."""
        size = manifest.model.image_size
        if size not in self.loaded.model.config.image_sizes:
            return self
        return replace(self, loaded=resized(self.loaded, size))

    @classmethod
    def of_preset(cls, name: str, *, trained: bool = True) -> "Self":
        """The weights that ship, if ``trained`` and there are any; otherwise seeded random ones.

        Raises:
            InputError: there is no such preset.
        """
        config = preset(name)
        if trained and name in SHIPPED:
            return cls.of_checkpoint(shipped_checkpoint(name))
        loaded = load_preset(config, seed=0)
        key = hashlib.sha256(f"{name}, {loaded.weights}".encode()).hexdigest()  # there is no file
        source = FileRef(file=f"{name}.safetensors", sha256=key, bytes=0)
        return cls(f"preset {name}, {loaded.weights}", loaded, source)


def shipped_weights(manifest: Manifest) -> Weights | None:
    """The weights that ship, if the bundle's manifest says that it was made from them."""
    model = manifest.model
    if model.name not in SHIPPED or not model.trained:
        return None
    weights = Weights.of_preset(model.name).like(manifest)
    return weights if weights.loaded.weights == model.weights else None


class TorchReference:
    """See :class:`escnet_bench.parity.Reference`; made by :meth:`opened`."""

    def __init__(self, segmenter: Segmenter, backend: "_ComparingBackend") -> None:
        self.segmenter, self._backend = segmenter, backend

    @classmethod
    @contextmanager
    def opened(cls, weights: Weights, bundle: Segmenter) -> Iterator["Self"]:
        """PyTorch with these weights, beside ``bundle``.

        Raises:
            InputError: the bundle was made from other weights: with these, PyTorch does not
                reproduce its golden run.
        """
        made: list[_ComparingBackend] = []
        graphs = bundle.pipeline.backend

        def backend(model: EscNet) -> TorchBackend:
            made.append(_ComparingBackend(model, graphs, bundle.bundle.manifest))
            return made[0]

        weights = weights.like(bundle.bundle.manifest)
        _require_same_form(weights, bundle.bundle.manifest)
        with ExitStack() as stack:
            segmenter = stack.enter_context(
                model_segmenter(weights.loaded, weights.source, chunk=bundle.chunk, backend=backend)
            )
            _require_same_weights(weights, segmenter, bundle)
            yield cls(segmenter, made[0])

    @contextmanager
    def comparing(self, wanted: bool) -> Iterator[None]:
        """See :class:`escnet_bench.parity.Reference`."""
        self._backend.comparing = wanted
        try:
            yield
        finally:
            self._backend.comparing = False

    def stages(self) -> Mapping[str, StageFigure]:
        """See :class:`escnet_bench.parity.Reference`."""
        return {
            name: StageFigure(relative_l2=error.relative_l2, cosine=error.cosine)
            for name, error in self._backend.errors.items()
        }


class _ComparingBackend(TorchBackend):
    """PyTorch that also runs each of a bundle's graphs on the inputs that its own graph gets.

    Outputs are compared at once, because a record of every call with hundreds of categories would
    take gigabytes.
    """

    def __init__(self, model: EscNet, graphs: Backend, manifest: Manifest) -> None:
        super().__init__(model)
        self._bundle = graphs
        self._types = {
            name: {port.name: getattr(torch, port.dtype) for port in stage.inputs}
            for name, stage in manifest.stages.items()
        }
        self.errors: dict[str, StageError] = {}
        self.comparing = False

    def run(self, graph: str, inputs: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
        """As the base class, and compare with the bundle if that is wanted."""
        outputs = super().run(graph, inputs)
        if self.comparing:
            given = {name: self.to_host(value) for name, value in inputs.items()}
            types = self._types[graph]
            call = Call(graph, {name: given[name] for name in types}, {})
            got = self._bundle.run(graph, feeds_of(call, types))
            error = self.errors.setdefault(graph, StageError())
            for name, want in outputs.items():
                error.add(self._bundle.to_host(got[name]), self.to_host(want))
        return outputs


def _require_same_form(weights: Weights, manifest: Manifest) -> None:
    config, model = weights.loaded.model.config, manifest.model
    got = (config.name, config.blocks, config.clip.image_size, config.clip.embed_dim)
    want = (model.name, model.blocks, model.image_size, model.embed_dim)
    if got != want:
        raise InputError(
            f"{weights.name} is {_form(*got)}; the bundle is {_form(*want)}. Name what the bundle "
            "was made from"
        )


def _form(name: str, blocks: int, size: int, dimensions: int) -> str:
    return f"{name} ({blocks} blocks, {size} px, {dimensions} dimensions)"


def _require_same_weights(weights: Weights, torch_segmenter: Segmenter, bundle: Segmenter) -> None:
    """Refuse weights with which PyTorch does not reproduce the golden run that it once made."""
    found = golden_figures(torch_segmenter.pipeline, bundle)
    if found.failure is not None:
        raise InputError(
            f"{weights.name} does not run what the bundle was compared with: {found.failure}"
        )
    worst = max(found.stages, key=found.stages.__getitem__)
    if not found.stages[worst] <= _SAME_WEIGHTS:
        raise InputError(
            f"{weights.name} is not what the bundle was made from: in the bundle's golden run, "
            f"stage {worst} differs by {found.stages[worst]:.1e} (relative L2), expected at most "
            f"{_SAME_WEIGHTS:.0e}. Name the checkpoint that it was exported from with --checkpoint"
        )
