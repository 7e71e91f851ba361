"""From categories to a vocabulary: by tokenizer and text encoder, or from the cache."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .embedding_cache import EmbeddingCache
from .errors import OutOfDeviceMemory
from .pipeline import Pipeline
from .tokenizer import END, START, Tokenizer
from .unchanged import require_unchanged
from .vocabulary import Vocabulary, assemble, plan_texts

__all__ = ["TEXT_BATCH", "TextEmbedding"]

_LOG: Final = logging.getLogger("escnet_runtime")

#: Texts encoded at a time: bounds the text encoder's memory, and its engine is built for it.
TEXT_BATCH: Final = 64
_CUT_SHOWN: Final = 3


class TextEmbedding:
    """Embeds the categories of one model. Not safe for several threads at once.

    Args:
        bundle: has the tokenizer, the templates and the text encoder's description.
        pipeline: runs the text encoder, which is freed again: few runs need it twice.
        cache: folder of the cache; None for none.
    """

    def __init__(self, bundle: Bundle, pipeline: Pipeline, cache: Path | None) -> None:
        self._bundle, self._pipeline = bundle, pipeline
        self._tokenizer: Tokenizer | None = None
        self._batch = TEXT_BATCH
        self._cache = None if cache is None else EmbeddingCache(cache, self.model_key)

    @property
    def model_key(self) -> str:
        """What a text's embedding depends on besides the text."""
        manifest = self._bundle.manifest
        return f"{manifest.stages['text_encoder'].sha256}-{manifest.tokenizer.sha256}"

    def vocabulary(self, names: Iterable[str], templates: Iterable[str] | None) -> Vocabulary:
        """See :meth:`escnet_runtime.Segmenter.vocabulary`."""
        if templates is None:
            templates = self._bundle.manifest.constants.templates
        plan = plan_texts(names, templates)
        self._warn_of_cut(plan.prompts)
        known = self._cache.get_many(plan.prompts) if self._cache else {}
        missing = [text for text in plan.prompts if text not in known]
        if missing:
            encoded = self._encoded(missing)
            known.update(encoded)
            if self._cache:
                self._cache.put_many(encoded)
        embeddings = np.stack([known[text] for text in plan.prompts])
        return assemble(plan, embeddings, model=self.model_key)

    def _encoded(self, texts: list[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed cleaned texts."""
        tokenizer = self._opened()
        # Texts of one length together, without padding: what a text's embedding is, to the last
        # bit, must not depend on the texts that happen to be encoded with it.
        by_length: dict[int, list[tuple[str, npt.NDArray[np.int32]]]] = {}
        for text in texts:
            ids = tokenizer.encode([text], cleaned=True)[0]
            by_length.setdefault(len(ids), []).append((text, ids))
        encoded: dict[str, npt.NDArray[np.float32]] = {}
        try:
            for entries in by_length.values():
                rows = self._rows(np.stack([ids for _, ids in entries]))
                encoded.update(zip((text for text, _ in entries), rows, strict=True))
        finally:
            self._pipeline.backend.release("text_encoder")
        return encoded

    def _opened(self) -> Tokenizer:
        if self._tokenizer is None:
            reference = self._bundle.manifest.tokenizer
            path = self._bundle.file(reference.file)
            require_unchanged(path, reference.sha256, None)  # it may be long since it was checked
            self._tokenizer = Tokenizer.open(path, reference.context_length)
        return self._tokenizer

    def _warn_of_cut(self, texts: Iterable[str]) -> None:
        """Name what the text encoder does not read to its end: two such texts may be one to it."""
        most = self._bundle.manifest.tokenizer.context_length
        # A token is a byte at least, so what is no longer in bytes is whole.
        long = [text for text in texts if len(text.encode()) > most - len((START, END))]
        cut = self._opened().cut(long) if long else []
        if cut:
            _LOG.warning(
                "the text encoder reads %d tokens, and not the end of %d texts: %s; use shorter "
                "names",
                most,
                len(cut),
                ", ".join(f"{text!r:.60}…" for text in cut[:_CUT_SHOWN]),
            )

    def _rows(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Embeddings of texts of one length, in fewer at a time where memory does not suffice."""
        found: list[npt.NDArray[np.float32]] = []
        start = 0
        while start < len(tokens):
            batch = tokens[start : start + self._batch]
            try:
                found.append(self._pipeline.encode_text(batch))
            except OutOfDeviceMemory as error:
                error.let_go()
                self._fewer(len(batch), error)
                continue
            start += len(batch)
        return np.concatenate(found)

    def _fewer(self, texts: int, error: OutOfDeviceMemory) -> None:
        """Half as many texts at a time; raises OutOfDeviceMemory where it was one."""
        if texts == 1:
            raise OutOfDeviceMemory(
                f"{error}. The text encoder does not fit the GPU with a single text: make memory "
                "free, or encode the categories with another backend"
            ) from error
        self._batch = texts // 2
        _LOG.warning(
            "the GPU's memory does not suffice for %d texts at a time (%s); trying %d, which takes "
            "longer",
            texts,
            error,
            self._batch,
        )
