"""The memory estimate against the real model file and numbers worked out by hand."""

import json
import math
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from axpo.cli import app
from axpo.config import load_recipe
from axpo.memory import HEAD_CHUNK, estimate, learner_bytes, shape_of
from learner import head
from learner.config import LearnerConfig, LoraSettings

MODEL = Path("axpo/models/qwen3-vl-tiny")
# Qwen/Qwen3-VL-8B-Thinking's config.json, the fields that count.
LARGE = {
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "depth": 27,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "spatial_merge_size": 2,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}


def test_parameters_of_the_embedded_model_are_those_of_its_file():
    with safe_open(MODEL / "model.safetensors", "np") as weights:
        names = list(weights.keys())
        actual = sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    assert shape_of(json.loads((MODEL / "config.json").read_text())).parameters == actual


def test_the_8b_model_has_8_77_billion():
    assert shape_of(LARGE).parameters == pytest.approx(8.77e9, rel=0.001)


def test_zero3_divides_by_ranks_and_offload_and_adapters_save():
    shape = shape_of(LARGE)
    p = shape.parameters
    half = LearnerConfig(ranks=8, dtype="bfloat16")
    thrifty = half.model_copy(update={"gradient_checkpointing": True})
    full = learner_bytes(shape, thrifty, own_reference=True)
    assert full["weights"] == pytest.approx(2 * p * 2 / 8)  # policy and reference, two bytes each
    assert full["optimizer"] == pytest.approx(12 * p / 8)
    everything_kept = learner_bytes(shape, half, own_reference=True)["activations"]
    assert full["activations"] < everything_kept / 5
    offloaded = LearnerConfig(ranks=8, offload_optimizer=True)
    assert learner_bytes(shape, offloaded, own_reference=False)["optimizer"] == 0
    lora = LoraSettings(rank=16, targets=("q_proj",))
    adapters = learner_bytes(shape, LearnerConfig(ranks=8, lora=lora), own_reference=False)
    assert adapters["gradients"] == 36 * 16 * (4096 + 4096) * 4 / 8
    assert head.CHUNK == HEAD_CHUNK


def test_a_recipe_that_cannot_fit_is_warned_about():
    shape = shape_of(LARGE)
    recipe = load_recipe("deploy/recipes/qwen3-vl-8b-thinking.yaml")
    lines, warnings = estimate(recipe, shape, 80)
    assert not warnings, lines
    _, warnings = estimate(recipe, shape, 16)
    assert [w.split(":")[0] for w in warnings] == ["learner", "rollout"]
    # 2 x 36 layers x 1,024 wide x 2 bytes x 16,384 tokens = 2.25 GiB
    assert "KV cache 2.2 GiB for a sequence of 16384 tokens" in lines[2]


def test_check_prints_it():
    result = CliRunner().invoke(app, ["check", "deploy/recipes/demo.yaml"])
    assert result.exit_code == 0
    assert "learner, each of 2 ranks" in " ".join(result.output.split())
