"""The memory estimate against transformers' models, autograd, and numbers worked out by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from axpo.cli import app
from axpo.config import load_recipe
from axpo.memory import estimate, read_config, shape_of
from axpo.memory.activations import Load, load_of, text_bytes, vision_bytes
from axpo.memory.known import KNOWN
from axpo.memory.recipe import (
    GIB,
    LIVE_PARAMETERS,
    PACKED_BUFFERS,
    REDUCE_BUCKET,
    SUB_GROUP,
    rank_memory,
)
from learner.config import HEAD_CHUNK_CUDA, LearnerConfig, LoraSettings
from tests.real.folder import Spec, config_of

MODEL = Path("axpo/models/qwen3-vl-tiny")
LARGE = KNOWN["Qwen/Qwen3-VL-8B-Thinking"]
GPU = {"ranks": 8, "gpus_per_rank": 1, "dtype": "bfloat16", "gradient_checkpointing": True}


def parameters_of(config) -> int:
    """Count the parameters of transformers' own model, which is built without memory."""
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    fields = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            CONFIG_MAPPING[config["model_type"]](**fields)
        )
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_the_embedded_model_are_those_of_its_file():
    with safe_open(MODEL / "model.safetensors", "np") as weights:
        names = list(weights.keys())
        actual = sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    assert shape_of(json.loads((MODEL / "config.json").read_text())).parameters == actual


# Thinking and Instruct are of one shape.
@pytest.mark.parametrize("model", [name for name in KNOWN if "3-VL" not in name or "Think" in name])
def test_parameters_of_a_known_model_are_transformers_own_to_the_last_one(model):
    assert shape_of(KNOWN[model]).parameters == parameters_of(KNOWN[model])


@pytest.mark.parametrize("family", ["thinking", "qwen2_5"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_a_config_as_the_hub_has_it(family, tied):
    config = config_of(Spec(family, tied=tied))
    assert shape_of(config).parameters == parameters_of(config)


def test_the_sizes_in_the_names_are_right():
    """In billions, of the model cards."""
    billions = {name: shape_of(config).parameters / 1e9 for name, config in KNOWN.items()}
    assert billions["Qwen/Qwen3-VL-2B-Instruct"] == pytest.approx(2.13, abs=0.01)
    assert billions["Qwen/Qwen3-VL-4B-Thinking"] == pytest.approx(4.44, abs=0.01)
    assert billions["Qwen/Qwen3-VL-8B-Thinking"] == pytest.approx(8.77, abs=0.01)
    assert billions["Qwen/Qwen2.5-VL-3B-Instruct"] == pytest.approx(3.75, abs=0.01)
    assert billions["Qwen/Qwen2.5-VL-7B-Instruct"] == pytest.approx(8.29, abs=0.01)


def test_known_models_need_no_hub(monkeypatch, tmp_path):
    import httpx
    import huggingface_hub.constants

    def unreachable(*args, **kwargs):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx, "get", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for size in ("2B", "4B", "8B"):
        for kind in ("Thinking", "Instruct"):
            assert read_config(f"Qwen/Qwen3-VL-{size}-{kind}")["model_type"] == "qwen3_vl"
    assert read_config("Qwen/Qwen3-VL-32B-Thinking") is None


@pytest.mark.parametrize("family", ["thinking", "qwen2_5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_saves(family, dtype):
    config = config_of(Spec(family))
    tokens, patches = 596, 1024
    text, vision = saved_bytes(config, dtype, tokens, patches)
    shape = shape_of(config)
    load = Load(tokens, patches, dtype.itemsize, checkpointing=False, vision_trains=True)
    assert text_bytes(shape.text, load) == pytest.approx(text, rel=0.1)
    # The tower was given its pixels in its own type: the copy in float32 is not in `vision`.
    copy = 4 * patches * shape.vision.patch_values if dtype == torch.bfloat16 else 0
    assert vision_bytes(shape.vision, load) - copy == pytest.approx(vision, rel=0.1)


def saved_bytes(config, dtype, tokens: int, patches: int) -> tuple[int, int]:
    """Return the bytes that autograd saves in the language model and in the vision tower."""
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    fields = {name: value for name, value in config.items() if name != "model_type"}
    loaded = CONFIG_MAPPING[config["model_type"]](**fields)
    model = AutoModelForImageTextToText.from_config(loaded).to(dtype).model
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[str, dict[int, torch.Tensor]] = {"text": {}, "vision": {}}
    current = ["text"]

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[current[0]][place] = tensor  # kept alive, so no place is used twice
        return tensor

    forward = model.visual.forward

    def watched(*args, **kwargs):
        current[0] = "vision"
        out = forward(*args, **kwargs)
        current[0] = "text"
        return out

    model.visual.forward = watched
    side = math.isqrt(patches)
    ids = torch.full((1, tokens), 100)
    ids[0, 5 : 5 + patches // 4] = config["image_token_id"]
    pixels = torch.randn(patches, shape_of(config).vision.patch_values, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(
            input_ids=ids,
            pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, side, side]]),
            mm_token_type_ids=(ids == config["image_token_id"]).int(),
            use_cache=False,
        )
    sums = {
        name: sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
        for name, tensors in kept.items()
    }
    return sums["text"], sums["vision"]


def test_checkpointing_keeps_inputs_and_one_layer():
    shape = shape_of(KNOWN["Qwen/Qwen3-VL-2B-Thinking"])
    load = load_of(shape, 32_768, 2, checkpointing=True, vision_trains=True)
    assert load.patches == 98_304  # three in four tokens are an image's, of 2 x 2 patches
    # 28 layers of 2,048 wide inputs, one layer of 56,320 values ... by hand:
    layer = 2 * 2048 * 8 + 3072 * 6 + (3 * 2048 + 2 * 1024) * 2 + 4 * 6144 * 2
    assert text_bytes(shape.text, load) == 32_768 * (28 * 2048 * 2 + layer + 2048 * 12)
    # 24 blocks of 1,024 wide inputs, one block, four mergers, pixels in both types.
    block = 11 * 1024 * 2 + 2 * 4096 * 2
    mergers = 4 * (4 * 1024 * 2 + 2048 * 2 // 4)
    assert vision_bytes(shape.vision, load) == 98_304 * (24 * 2048 + block + mergers + 1536 * 6)
    frozen = load_of(shape, 32_768, 2, checkpointing=True, vision_trains=False)
    assert vision_bytes(shape.vision, frozen) == 98_304 * (block + 1536 * 4)


def test_zero3_divides_by_ranks_and_offload_and_adapters_save():
    shape = shape_of(LARGE)
    p = shape.parameters
    full = rank_memory(shape, LearnerConfig(**GPU), own_reference=True)
    assert full.always["weights"] == pytest.approx(2 * p * 2 / 8)  # policy and reference
    assert full.always["optimizer"] == pytest.approx(12 * p / 8)
    assert full.host == 0
    everything_kept = rank_memory(
        shape, LearnerConfig(**GPU | {"gradient_checkpointing": False})
    ).phases["a micro-batch"]
    assert full.phases["a micro-batch"]["activations"] < everything_kept["activations"] / 5
    assert full.phases["a micro-batch"]["vision tower"] < everything_kept["vision tower"] / 5
    adapters = rank_memory(
        shape, LearnerConfig(**GPU, lora=LoraSettings(rank=16, targets=("q_proj",)))
    )
    assert adapters.always["gradients"] == 36 * 16 * (4096 + 4096) * 4 / 8
    assert adapters.phases["a micro-batch"]["head's gradient"] == 0


def test_an_offloaded_optimizer_is_counted_on_the_host():
    """float32 weights and two moments; pinned, the gradients twice: 20 bytes a parameter."""
    shape = shape_of(LARGE)
    rank = rank_memory(shape, LearnerConfig(**GPU, offload_optimizer=True))
    assert rank.always["optimizer"] == rank.always["gradients"] == 0
    assert 8 * rank.host == pytest.approx(20 * shape.parameters)
    assert 8 * rank.pinned == pytest.approx(8 * shape.parameters)
    both = rank_memory(shape, LearnerConfig(**GPU, offload_optimizer=True, offload_parameters=True))
    assert both.always["weights"] == 0
    assert both.pinned - rank.pinned == pytest.approx(2 * shape.parameters / 8)


def test_a_micro_batch_counts_logits_and_the_heads_gradient():
    config = LearnerConfig(**GPU, micro_batch_tokens=1000)
    short = rank_memory(shape_of(LARGE), config, longest_row=900).phases["a micro-batch"]
    assert short["logits"] == 16 * 1000 * 151_936
    assert short["head's gradient"] == 151_936 * 4096 * 6
    # A longer trajectory stands alone in a larger one; its logits come in chunks.
    longer = rank_memory(shape_of(LARGE), config, longest_row=20_000).phases["a micro-batch"]
    assert longer["logits"] == 16 * HEAD_CHUNK_CUDA


def test_saving_counts_the_bucket_and_not_a_file():
    shape = shape_of(KNOWN["Qwen/Qwen3-VL-8B-Thinking"])
    for bucket_mb, expected in ((512, 151_936 * 4096 * 2), (2048, 2048 * 2**20)):
        config = LearnerConfig(**GPU, bucket_mb=bucket_mb)
        assert rank_memory(shape, config).phases["saving"] == {"bucket": expected}


@pytest.mark.parametrize(("size", "megabytes"), [("2B", 622), ("4B", 778), ("8B", 1245)])
def test_sending_counts_the_largest_tensor_and_the_packing_buffers(size, megabytes):
    shape = shape_of(KNOWN[f"Qwen/Qwen3-VL-{size}-Thinking"])
    config = LearnerConfig(**GPU, bucket_mb=512)
    ipc = rank_memory(shape, config, transfer="ipc").phases["sending"]
    # The embedding is larger than the bucket.
    assert ipc["bucket"] == ipc["packing"] == pytest.approx(megabytes * 1e6, rel=0.001)
    nccl = rank_memory(shape, config, transfer="nccl").phases["sending"]
    assert nccl["packing"] == 3 * (GIB / 2 + ipc["bucket"])
    # Each element of 2 bytes has a place of 4, on the ranks and once more on rank 0.
    sparse = rank_memory(shape, config, transfer="sparse_nccl")
    assert sparse.phases["sending"]["packing"] == 2 * 3 * ipc["bucket"]
    assert sparse.always["weights sent"] == sparse.always["weights"] > 0
    alone = config.model_copy(update={"lora": LoraSettings(sync="adapters")})
    assert rank_memory(shape, alone, transfer="ipc").phases["sending"]["bucket"] == 0
    assert rank_memory(shape, config).phases["sending"]["packing"] == 0


def test_the_numbers_of_other_modules_are_theirs():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from vllm.distributed.weight_transfer import packed_tensor

    from learner import zero

    defaults = DeepSpeedZeroConfig()
    assert defaults.max_live_parameters == LIVE_PARAMETERS
    assert defaults.sub_group_size == SUB_GROUP
    for gpus in (0, 1):
        settings = zero.frozen(LearnerConfig(gpus_per_rank=gpus))["zero_optimization"]
        assert settings["reduce_bucket_size"] == REDUCE_BUCKET[gpus > 0]
    assert packed_tensor.DEFAULT_PACKED_NUM_BUFFERS == PACKED_BUFFERS


def test_what_colocated_ranks_lend_is_in_host_memory():
    shape = shape_of(KNOWN["Qwen/Qwen3-VL-2B-Thinking"])
    recipe = load_recipe("deploy/recipes/qwen3-vl-2b-thinking.yaml")
    lines, _ = estimate(recipe, shape, 80)
    # Weights of policy and reference (2 + 2 bytes), float32 weights and two moments (12).
    lent = 16 * shape.parameters / GIB
    expected = f"learner, host memory of each rank while engines run: {lent:.1f} GiB, all pinned"
    assert [line for line in lines if line.startswith(expected)]
    apart, _ = estimate(load_recipe("deploy/recipes/demo.yaml"), shape, 80)
    assert not [line for line in apart if "while engines run" in line]


def test_a_recipe_that_cannot_fit_is_warned_about():
    shape = shape_of(LARGE)
    recipe = load_recipe("deploy/recipes/qwen3-vl-8b-thinking.yaml")
    lines, warnings = estimate(recipe, shape, 80)
    assert not warnings, lines
    _, warnings = estimate(recipe, shape, 16)
    assert [w.split(":")[0] for w in warnings] == ["learner", "rollout"]
    assert "weights (16 GiB a GPU) and kv_cache_gb" in warnings[1]
    # 2 x 36 layers x 1,024 wide x 2 bytes x 16,384 tokens = 2.25 GiB
    assert "KV cache 2.2 GiB for a sequence of 16384 tokens" in lines[3]


def test_check_prints_it():
    result = CliRunner().invoke(app, ["check", "deploy/recipes/demo.yaml"])
    assert result.exit_code == 0
    assert "learner, each of 2 ranks" in " ".join(result.output.split())
