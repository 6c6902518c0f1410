"""The byte-level BPE of Qwen2 and Qwen3, from the vocabulary that PyPI's `dashscope` ships.

`dashscope` (Apache-2.0) holds `qwen.tiktoken`: 151,643 tokens, a rank each. Hugging Face's
tokenizers want merges instead. A token's merge is the pair that the lower ranks make of its bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path

SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokenizer, a fact of its tokenizer.json."""

# The added tokens in the order of their ids, from 151,643 on. The second group is special=False.
CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
QWEN3_ONLY = ("<tool_response>", "</tool_response>", "<think>", "</think>")
FIRST_ADDED = 151_643


@cache
def ranks() -> dict[bytes, int]:
    """Return the rank of each token.

    Raises:
        ValueError: the file is not the one whose hash is known.
    """
    package = importlib.util.find_spec("dashscope")
    assert package is not None
    assert package.origin is not None
    data = Path(package.origin).with_name("resources").joinpath("qwen.tiktoken").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ValueError(f"qwen.tiktoken: expected sha256 {SHA256}, found {found}")
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


@cache
def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges as Hugging Face's tokenizers want them."""
    vocabulary = {_text(token): rank for token, rank in ranks().items()}
    by_rank = sorted(ranks(), key=ranks().__getitem__)
    merges = [_merge(token) for token in by_rank if len(token) > 1]
    return vocabulary, [(_text(left), _text(right)) for left, right in merges]


@cache
def tokenizer_json(*, thinks: bool) -> str:
    """Return the text of tokenizer.json; `thinks`: with the four tokens that Qwen3 added."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    tokenizer = Tokenizer(models.BPE(*bpe()))
    tokenizer.normalizer = normalizers.NFC()
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_words, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    control = [AddedToken(token, special=True, normalized=False) for token in CONTROL]
    plain = [AddedToken(token, special=False, normalized=False) for token in added(thinks=thinks)]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(plain[len(CONTROL) :])
    text: str = tokenizer.to_str()
    return text


def added(*, thinks: bool) -> tuple[str, ...]:
    """Return every added token, in the order of the ids."""
    return (*CONTROL, *PLAIN, *(QWEN3_ONLY if thinks else ()))


def _merge(token: bytes) -> tuple[bytes, bytes]:
    """Return the two parts that become `token`: merge its bytes, lowest rank first, down to two."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [left + right for left, right in pairwise(parts)]
        best = min(range(len(pairs)), key=lambda at: ranks().get(pairs[at], FIRST_ADDED))
        parts[best : best + 2] = [pairs[best]]
    return parts[0], parts[1]


@cache
def _symbols() -> dict[int, str]:
    """Return GPT-2's printable character for each byte: its own if it has one, else from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | shifted


def _text(token: bytes) -> str:
    return "".join(_symbols()[byte] for byte in token)
