"""Read from a model's config.json the numbers that its memory depends on.

Parameters are counted by formula, so no weight is read and torch is not imported. The counts are
those of transformers' own classes, to the last one (`tests/axpo/test_memory.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from axpo.config import hub_name, looks_local
from axpo.memory.known import KNOWN, Config

Sizes: TypeAlias = Mapping[str, tuple[int, int]]
"""Linear layers by name: (in, out)."""


@dataclass(frozen=True)
class TextShape:
    """The numbers of a language model."""

    parameters: int  # with the embedding, without an untied head
    layers: int
    hidden: int
    intermediate: int
    attention: int  # width of queries
    kv: int  # width of keys, and of values
    vocabulary: int
    normed_heads: bool  # queries and keys have norms of their own
    linear: Sizes  # of one decoder layer

    @property
    def embedding(self) -> int:
        """Return the parameters of the embedding, and of the head."""
        return self.vocabulary * self.hidden


@dataclass(frozen=True)
class VisionShape:
    """The numbers of a vision tower."""

    parameters: int
    depth: int
    hidden: int
    intermediate: int
    out: int  # width of an image's token in the language model
    merge: int  # patches a side that become one token
    mergers: int  # the last one, and those of Qwen3-VL's deepstack
    patch_values: int  # numbers of a patch that the tower reads
    like_text: bool  # Qwen2.5-VL: RMSNorm and a gated MLP, as in the language model


@dataclass(frozen=True)
class Shape:
    """The numbers of a model."""

    text: TextShape
    vision: VisionShape
    tied: bool

    @property
    def head(self) -> int:
        """Return the parameters of an untied head."""
        return 0 if self.tied else self.text.embedding

    @property
    def parameters(self) -> int:
        """Return the number of all parameters."""
        return self.text.parameters + self.vision.parameters + self.head


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read the numbers from the config.json of a Qwen3-VL or Qwen2.5-VL."""
    # The hub's Qwen2.5-VL has the fields of the language model beside `vision_config`.
    text = config.get("text_config") or config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    qwen2_5 = config.get("model_type") == "qwen2_5_vl"
    return Shape(
        text=_text_shape(text, qwen2_5=qwen2_5),
        vision=_vision_shape(config["vision_config"], qwen2_5=qwen2_5),
        tied=tied,
    )


def _text_shape(text: Mapping[str, Any], *, qwen2_5: bool) -> TextShape:
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    head_width = text.get("head_dim") or hidden // text["num_attention_heads"]
    attention = text["num_attention_heads"] * head_width
    kv = text["num_key_value_heads"] * head_width
    intermediate = text["intermediate_size"]
    linear = {
        "q_proj": (hidden, attention),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (attention, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }
    weights = sum(width_in * width_out for width_in, width_out in linear.values())
    # Norms before attention and MLP. Then Qwen2.5 has biases of queries, keys and values, and
    # Qwen3 has norms of queries and keys.
    small = 2 * hidden + (attention + 2 * kv if qwen2_5 else 2 * head_width)
    embedding = text["vocab_size"] * hidden
    return TextShape(
        parameters=embedding + layers * (weights + small) + hidden,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        attention=attention,
        kv=kv,
        vocabulary=text["vocab_size"],
        normed_heads=not qwen2_5,
        linear=linear,
    )


def _vision_shape(vision: Mapping[str, Any], *, qwen2_5: bool) -> VisionShape:
    width, out = vision["hidden_size"], vision["out_hidden_size"]
    channels = vision.get("in_channels", vision.get("in_chans", 3))
    patch_values = channels * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    count = _qwen2_5_vision_parameters if qwen2_5 else _qwen3_vision_parameters
    return VisionShape(
        parameters=count(vision, patch_values),
        depth=vision["depth"],
        hidden=width,
        intermediate=vision["intermediate_size"],
        out=out,
        merge=vision["spatial_merge_size"],
        mergers=1 + len(vision.get("deepstack_visual_indexes", ())),
        patch_values=patch_values,
        like_text=qwen2_5,
    )


def _qwen3_vision_parameters(vision: Mapping[str, Any], patch_values: int) -> int:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    embedding = _linear(patch_values, width) + vision["num_position_embeddings"] * width
    norms = 2 * 2 * width  # two LayerNorms, each a weight and a bias
    block = _attention(width) + _linear(width, inner) + _linear(inner, width) + norms
    merged = width * vision["spatial_merge_size"] ** 2
    merger = _linear(merged, merged) + _linear(merged, vision["out_hidden_size"])
    # The last merger norms single patches, those of the deepstack the merged ones.
    deepstack = len(vision["deepstack_visual_indexes"]) * (merger + 2 * merged)
    return int(embedding + vision["depth"] * block + merger + 2 * width + deepstack)


def _qwen2_5_vision_parameters(vision: Mapping[str, Any], patch_values: int) -> int:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    embedding = patch_values * width
    norms = 2 * width  # two RMSNorms
    block = _attention(width) + 2 * _linear(width, inner) + _linear(inner, width) + norms
    merged = width * vision["spatial_merge_size"] ** 2
    merger = width + _linear(merged, merged) + _linear(merged, vision["out_hidden_size"])
    return int(embedding + vision["depth"] * block + merger)


def _attention(width: int) -> int:
    return _linear(width, 3 * width) + _linear(width, width)


def _linear(width_in: int, width_out: int) -> int:
    """Return the parameters of a linear layer with a bias."""
    return width_in * width_out + width_out


def read_config(model: str) -> Config | None:
    """Return the config.json of a model: of a folder, or of the hub.

    From the hub it comes from the local cache, from the models that are known here, or as that one
    file; None if the hub does not give it.
    """
    if looks_local(model):
        return _read(Path(model) / "config.json")
    import httpx
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    name, revision = hub_name(model)
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return _read(Path(cached))
    if name in KNOWN:
        return KNOWN[name]
    try:
        # Not hf_hub_download: without a network that retries for 25 s.
        answer = httpx.get(
            hf_hub_url(name, "config.json", revision=revision),
            headers=build_hf_headers(),
            timeout=5,
            follow_redirects=True,
        )
        config: Config = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return config


def _read(file: Path) -> Config:
    config: Config = json.loads(file.read_text(encoding="utf-8"))
    return config
