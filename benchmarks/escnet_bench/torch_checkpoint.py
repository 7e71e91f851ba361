"""A checkpoint behind the runtime's own pipeline: torch computes the graphs, in float32.

Tokenizer, prompts, windows and post-processing are the same code that a bundle runs through, so
figures of the two differ only by the graphs. Imported only when a checkpoint is evaluated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch

from escnet.model import EscNet
from escnet.precision import whole_float32
from escnet.tokenizer import write_tokenizer
from escnet.weights import LoadedCheckpoint, load_checkpoint, resized
from escnet_export.description import constants_of, model_info
from escnet_export.reference import TorchBackend
from escnet_runtime import __version__
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.manifest import (
    FileRef,
    Golden,
    Manifest,
    Parity,
    Precision,
    Stage,
    TokenizerRef,
)
from escnet_runtime.segmenter import Segmenter

__all__ = ["TorchOf", "checkpoint_reference", "checkpoint_segmenter", "model_segmenter"]

_TOKENIZER = "tokenizer.json"

#: Makes what runs a model's graphs.
TorchOf: TypeAlias = Callable[[EscNet], TorchBackend]


@contextmanager
def checkpoint_segmenter(
    path: Path, *, chunk: int | None = None, image_size: int | None = None
) -> Iterator[Segmenter]:
    """A Segmenter whose graphs are those of a checkpoint, run by torch.

    Runs on CUDA where torch finds it, else on the CPU. Embeddings are not cached: the key of the
    cache knows graphs, not checkpoints.

    Args:
        path: a ``.safetensors`` of this project.
        chunk: categories at a time; 16 by default, as in bundles.
        image_size: px a side of the image that the model sees; the checkpoint's own by default.

    Raises:
        WeightsError: the checkpoint cannot be used.
        InputError: its model takes no image of that size.
    """
    loaded = load_checkpoint(path)
    if image_size is not None:
        loaded = resized(loaded, image_size)
    with model_segmenter(loaded, checkpoint_reference(path), chunk=chunk) as segmenter:
        yield segmenter


@contextmanager
def model_segmenter(
    loaded: LoadedCheckpoint,
    source: FileRef,
    *,
    chunk: int | None = None,
    backend: TorchOf = TorchBackend,
) -> Iterator[Segmenter]:
    """The same for a model that is in memory; ``source`` tells it apart from others.

    ``backend`` makes what runs the graphs. Within, float32 is whole: torch uses no TF32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.model.eval().requires_grad_(False).to(device)
    with TemporaryDirectory(prefix="escnet-eval-") as name:
        bundle = Bundle(root=Path(name).resolve(), manifest=_manifest(loaded, source, Path(name)))
        with whole_float32(), Segmenter(bundle, backend(model), chunk=chunk, cache=None) as made:
            yield made


def checkpoint_reference(path: Path) -> FileRef:
    """What tells a checkpoint apart."""
    return FileRef(file=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)


def _manifest(loaded: LoadedCheckpoint, source: FileRef, folder: Path) -> Manifest:
    """What a bundle of this model would say of it; there are no graphs, only the weights."""
    model = loaded.model
    context = model.config.clip.context_length
    write_tokenizer(
        folder / _TOKENIZER, vocab_size=model.config.clip.vocab_size, context_length=context
    )
    stage = Stage(
        file=source.file,
        sha256=source.sha256,
        bytes=source.bytes,
        precision=Precision.FP32,
        inputs=(),
        outputs=(),
    )
    tokenizer = folder / _TOKENIZER
    return Manifest(
        model=model_info(model.config, weights=loaded.weights, trained=loaded.trained),
        precision=Precision.FP32,
        constants=constants_of(model.config),
        stages={"text_encoder": stage},  # tells vocabularies of different models apart
        tokenizer=TokenizerRef(
            file=_TOKENIZER,
            sha256=sha256_file(tokenizer),
            bytes=tokenizer.stat().st_size,
            context_length=context,
        ),
        golden=Golden(categories=(), files=()),
        # With itself: this is the model that bundles are compared with.
        parity=Parity(
            passed=True,
            gate="pixels",
            allowed_failure=False,
            pixel_agreement=1.0,
            prompt_flips=0,
            files=(),
        ),
        producer={"escnet": __version__, "torch": str(torch.__version__)},
    )
