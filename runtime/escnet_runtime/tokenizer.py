"""Text to the token ids of CLIP, from a bundle's ``tokenizer.json``.

The cleaning is the one of open_clip's tokenizer, step by step: repair of wrongly decoded text,
HTML entities, white space, lower case.
"""

import contextlib
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .errors import BundleFormatError, BundleIntegrityError, VocabularyError

__all__ = ["END", "START", "WORDS", "Tokenizer", "clean_text"]

START = "<start_of_text>"
END = "<end_of_text>"
#: What a text is split into, as a regular expression of the tokenizers library. open_clip matches
#: case-blind; on lower-case text only the long s still makes a difference. What fits nothing is
#: dropped, as there: white space and, a quirk of its library, U+0345.
WORDS = (
    r"<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
)
_CLIP_SPLITTING = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
_MAX_BYTES = 64 * 2**20
_MOST = 2**31 - 1
_AGAIN = "Export the bundle again."


def clean_text(text: str) -> str:
    """Clean a text as open_clip does before it tokenises.

    Texts that are equal after cleaning have the same token ids.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):
        # Printable ASCII without an ampersand is a fixed point of these two, and most names are:
        # few starts wait for ftfy to be imported.
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class Tokenizer:
    """The tokenizer of a bundle; safe to use from several threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, context_length: int) -> None:
        """Take over ``tokenizer``; prefer `Tokenizer.open`."""
        # The file carries as much of the cleaning as the format can; here `clean_text` does all of
        # it, and a second lower-casing with newer Unicode tables must not follow.
        tokenizer.normalizer = None
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)
        self._tokenizer = tokenizer
        self.context_length = context_length

    @classmethod
    def open(cls, path: Path, context_length: int) -> "Tokenizer":
        """Read a tokenizer in the Hugging Face tokenizers format.

        Raises:
            BundleIntegrityError: the file cannot be read.
            BundleFormatError: it is not a tokenizer, or lacks the start and end tokens of CLIP.
        """
        if context_length <= len((START, END)):
            raise BundleFormatError(f"The context length must be 3 or more; got {context_length}.")
        try:
            size = path.stat().st_size
            text = path.read_text(encoding="utf-8") if size <= _MAX_BYTES else ""
        except OSError as error:
            raise BundleIntegrityError(
                f"Cannot read the tokenizer {path}: {error.strerror}."
            ) from error
        except UnicodeDecodeError as error:
            raise BundleFormatError(f"The tokenizer {path} is not UTF-8 text: {error}.") from error
        if size > _MAX_BYTES:
            raise BundleFormatError(f"The tokenizer {path} has {size:,} bytes; at most 64 MiB.")
        with _usable(path):
            tokenizer = tokenizers.Tokenizer.from_str(text)
            # Off before anything is encoded: a file may ask for any length.
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.normalizer = None
            probe = tokenizer.encode("").tokens
        if probe[:1] != [START] or END not in probe:
            raise BundleFormatError(
                f"The tokenizer {path} frames a text as {probe[:4]}; expected {[START, END]}, as "
                "CLIP's text encoder needs."
            )
        # The format can hold any regular expression, one that never ends too.
        if _splitting(tokenizer) != _CLIP_SPLITTING:
            raise BundleFormatError(
                f"The tokenizer {path} does not split texts as CLIP does. {_AGAIN}"
            )
        return cls(tokenizer, context_length)

    def encode(self, texts: Sequence[str], *, cleaned: bool = False) -> NDArray[np.int32]:
        """Clean and tokenise texts.

        Args:
            texts: t texts, in any language and of any length.
            cleaned: they have already been through `clean_text` (a second cleaning could resolve
                HTML entities once too often).

        Returns:
            int32 [t, L]: start token, text, end token, zeros; L is the longest of the batch, at
            most ``context_length``. A longer text is cut and still ends with the end token. Zeros
            behind the end token do not matter to CLIP, whose text encoder is causal; nor does what
            a text has behind "<end_of_text>", which is that token: CLIP reads at the first one.

        Raises:
            VocabularyError: something else than a list of texts.
            BundleFormatError: the tokenizer's file is damaged in a way that shows only here.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise VocabularyError(f"Expected a list of texts to tokenise; got {texts!r:.80}.")
        batch = list(texts) if cleaned else [clean_text(text) for text in texts]
        with _usable(None):
            rows = [_to_its_end(encoding.ids) for encoding in self._tokenizer.encode_batch(batch)]
        if any(number > _MOST for row in rows for number in row):
            raise BundleFormatError(f"The tokenizer gives token ids above {_MOST:,}. {_AGAIN}")
        tokens = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens

    def cut(self, texts: Sequence[str]) -> list[str]:
        """The cleaned texts that are longer than the model reads, which `encode` cuts."""
        with _usable(None):
            encoded = self._tokenizer.encode_batch(list(texts))
        return [text for text, one in zip(texts, encoded, strict=True) if one.overflowing]


def _to_its_end(ids: list[int]) -> list[int]:
    """All up to the first end token, which is also what every text ends with."""
    return ids[: ids.index(ids[-1]) + 1] if ids else ids


def _splitting(tokenizer: tokenizers.Tokenizer) -> object:
    """How it splits texts, as the format has it."""
    splitter = tokenizer.pre_tokenizer
    return None if splitter is None else json.loads(splitter.__getstate__())


@contextlib.contextmanager
def _usable(path: Path | None) -> Iterator[None]:
    """Turn what the library raises for a file into an error of the bundle."""
    what = "The tokenizer" if path is None else str(path)
    try:
        yield
    except BaseException as error:  # the library raises plain Exception, and panics beside it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleFormatError(
            f"{what} is not a tokenizer in the Hugging Face tokenizers format: {error}. {_AGAIN}"
        ) from error
