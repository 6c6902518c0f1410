"""Build the embedded model with random weights: a tiny Qwen3-VL of the classes of the large ones.

It has the model class, processor, tokenizer and chat format of Qwen3-VL-Thinking at 1/1000 of the
size. So every code path of the system runs on a CPU without any download. `axpo sft` trains it;
`axpo model build` builds and trains it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import (
        Qwen2TokenizerFast,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# As in Qwen's tokenizers, these are added tokens but not special ones: decoding keeps them.
MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
VOCABULARY = 768
# Qwen's pre-tokenizer: words with their leading space, single digits, punctuation runs.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
"""The format of Qwen3-VL-Thinking: tools as JSON lines in the system turn, tool results in a user
turn, an open <think>."""


def build(folder: str | Path, texts: Iterable[str], seed: int = 0) -> Path:
    """Write a model folder: config, random weights, tokenizer, processor, chat template.

    Args:
        folder: what is written; it must not exist.
        texts: what the tokenizer is trained on.
        seed: of the weights.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(texts)
    _random_model(tokenizer, seed).save_pretrained(folder)
    _processor(tokenizer).save_pretrained(folder)
    return folder


def build_tokenizer(texts: Iterable[str]) -> Qwen2TokenizerFast:
    """Train a byte-level BPE with Qwen's special tokens on `texts`.

    What it has not seen, it spells in bytes.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2TokenizerFast

    tokenizer = _trained_bpe(texts)
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    markup = [AddedToken(token, special=False, normalized=False) for token in MARKUP]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(markup)
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        chat_template=CHAT_TEMPLATE,
    )


def _trained_bpe(texts: Iterable[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(MARKUP),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _random_model(tokenizer: Qwen2TokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    config = _config(tokenizer)
    # Draws in this order: the weights, then the positions.
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    # At 0.03 the position of a patch drowns in its pixels, and boxes are never learned; at 0.5 they
    # are learned within 300 updates.
    model.model.visual.pos_embed.weight.data.normal_(std=0.5)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model.to(torch.bfloat16)


def _config(tokenizer: Qwen2TokenizerFast) -> Qwen3VLConfig:
    from transformers import Qwen3VLConfig

    token = tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config=_text_config(token("<|im_end|>"), token("<|endoftext|>")),
        vision_config=_vision_config(),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _text_config(eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [6, 5, 5],  # time, height, width: together half of head_dim
        "mrope_interleaved": True,
    }
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.03,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1],
        "initializer_range": 0.03,
    }


def _processor(tokenizer: Qwen2TokenizerFast) -> Qwen3VLProcessor:
    from transformers import Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    sizes = {
        "size": {"shortest_edge": 64 * 64, "longest_edge": 128 * 128},  # pixels of a whole picture
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=Qwen3VLVideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
