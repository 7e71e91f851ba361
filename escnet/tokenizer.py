"""The tokenizer of CLIP as one JSON file, built from the merges that open_clip ships.

Ids: 0 to 255 single bytes, 256 to 511 bytes that end a word, then one id for each merge, then the
start and the end token. A smaller vocabulary is the same list with fewer merges.
"""

import gzip
import importlib.util
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from escnet_runtime.atomic import atomic_file
from escnet_runtime.errors import InputError
from escnet_runtime.tokenizer import END, START, WORDS
from escnet_runtime.tokenizer import Tokenizer as RuntimeTokenizer

from .config import VOCABULARY_SIZES, ClipConfig

__all__ = ["build_tokenizer", "clip_tokenizer", "write_tokenizer"]

_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_FIXED_IDS, _FULL_SIZE = VOCABULARY_SIZES[0], VOCABULARY_SIZES[-1]
_END_OF_WORD = "</w>"


def build_tokenizer(vocab_size: int = _FULL_SIZE, context_length: int = 77) -> Tokenizer:
    """Build a tokenizer with the ids of open_clip's ``SimpleTokenizer``.

    The JSON format cannot repair wrongly decoded text nor resolve HTML entities;
    `escnet_runtime.tokenizer.Tokenizer` does both before it calls this one. A literal
    ``<end_of_text>`` directly behind punctuation is an end token here and plain text there.

    Args:
        vocab_size: number of ids; fewer than 49,408 leave out the rarest merges.
        context_length: longer texts are cut and keep the end token last.

    Raises:
        InputError: ``vocab_size`` is out of range, or open_clip's file of merges is missing.
    """
    if not _FIXED_IDS <= vocab_size <= _FULL_SIZE:
        raise InputError(
            f"vocab_size must be between {_FIXED_IDS} and {_FULL_SIZE}; got {vocab_size}."
        )
    merges = _read_merges(vocab_size - _FIXED_IDS)
    # Sorted by code point, the byte alphabet is in the order in which CLIP numbers it.
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*bytes_, *(byte + _END_OF_WORD for byte in bytes_)]
    entries += [first + second for first, second in merges]
    entries += [START, END]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    if len(vocabulary) != vocab_size:
        raise InputError(f"{_MERGES_FILE} gives {len(vocabulary)} distinct ids, not {vocab_size}.")

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (START, END)]
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, vocabulary[token]) for token in (START, END)],
    )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=0, pad_token=entries[0])
    return tokenizer


def clip_tokenizer(clip: ClipConfig) -> RuntimeTokenizer:
    """The runtime's tokenizer, with the ids and the longest text of a CLIP.

    Raises:
        InputError: as `build_tokenizer`.
    """
    return RuntimeTokenizer(
        build_tokenizer(clip.vocab_size, clip.context_length), clip.context_length
    )


def write_tokenizer(path: Path, vocab_size: int = _FULL_SIZE, context_length: int = 77) -> None:
    """Write `build_tokenizer` to a JSON file, whole or not at all.

    Raises:
        InputError: as `build_tokenizer`, or the place is not writable.
    """
    text = build_tokenizer(vocab_size, context_length).to_str()
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_merges(count: int) -> list[tuple[str, str]]:
    # Looked up without importing open_clip, which would import torch.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise InputError("open_clip is not installed: pip install open_clip_torch.")
    path = Path(spec.origin).with_name(_MERGES_FILE)
    try:
        # The first line is a version comment.
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : count + 1]
    except OSError as error:
        raise InputError(f"Cannot read open_clip's merges {path}: {error}.") from error
    pairs = [tuple(line.split()) for line in lines]
    if len(pairs) != count or any(len(pair) != len(("first", "second")) for pair in pairs):
        raise InputError(f"{path} holds no {count} merges of two parts; reinstall open_clip_torch.")
    return [(pair[0], pair[1]) for pair in pairs]
