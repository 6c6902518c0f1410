"""Know the models of the hub that recipes name most, so that `axpo check` needs no network."""

from __future__ import annotations

from typing import Any, TypeAlias

Config: TypeAlias = dict[str, Any]
"""A config.json."""

# The towers of 2B and 4B are one, that of 8B is larger.
_QWEN3_TOWER: Config = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "depth": 24,
    "num_heads": 16,
    "deepstack_visual_indexes": [5, 11, 17],
    "patch_size": 16,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
}
_LARGE_QWEN3_TOWER: Config = _QWEN3_TOWER | {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "depth": 27,
    "deepstack_visual_indexes": [8, 16, 24],
}
_QWEN2_5_TOWER: Config = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN3_2B: Config = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 262_144,
}
_QWEN3_4B: Config = _QWEN3_2B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
}
_QWEN3_8B: Config = _QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12_288}
_QWEN2_5_3B: Config = {
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 128_000,
}
_QWEN2_5_7B: Config = {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "max_position_embeddings": 128_000,
}


def _qwen3(text: Config, tower: Config, *, tied: bool) -> Config:
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": text,
        "vision_config": tower | {"out_hidden_size": text["hidden_size"]},
    }


def _qwen2_5(text: Config, *, tied: bool) -> Config:
    tower = _QWEN2_5_TOWER | {"out_hidden_size": text["hidden_size"]}
    return text | {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": tied,
        "vision_config": tower,
    }


_2B = _qwen3(_QWEN3_2B, _QWEN3_TOWER, tied=True)
_4B = _qwen3(_QWEN3_4B, _QWEN3_TOWER, tied=True)
_8B = _qwen3(_QWEN3_8B, _LARGE_QWEN3_TOWER, tied=False)

KNOWN: dict[str, Config] = {
    "Qwen/Qwen3-VL-2B-Thinking": _2B,
    "Qwen/Qwen3-VL-2B-Instruct": _2B,
    "Qwen/Qwen3-VL-4B-Thinking": _4B,
    "Qwen/Qwen3-VL-4B-Instruct": _4B,
    "Qwen/Qwen3-VL-8B-Thinking": _8B,
    "Qwen/Qwen3-VL-8B-Instruct": _8B,
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(_QWEN2_5_3B, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(_QWEN2_5_7B, tied=False),
}
"""Models of the hub whose shape is known without it: the fields of their config.json that count."""
