"""What vLLM is told."""

from types import SimpleNamespace

import pytest
import torch

from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.engine_setup import engine_arguments, set_environment
from rollout_workers.settings import WorkerSettings

pytestmark = [pytest.mark.engine]
MODEL = "axpo/models/qwen3-vl-tiny"
LONGER = {"text_config": {"max_position_embeddings": 4096}}


def arguments(**engine):
    config = RolloutConfig(engine=EngineConfig(**engine))
    return engine_arguments(WorkerSettings(MODEL, config, None, None, run_seed=0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_whatever_the_type_of_the_weights(dtype):
    from vllm.config import ModelConfig

    told = arguments(dtype=dtype, options={"hf_overrides": LONGER})
    model = ModelConfig(**{name: told[name] for name in ("model", "dtype", "hf_overrides")})
    assert (model.dtype, model.head_dtype) == (getattr(torch, dtype), torch.float32)
    assert model.hf_config.text_config.max_position_embeddings == 4096


def test_options_of_the_recipe_come_last():
    told = arguments(options={"seed": 7, "hf_overrides": {"head_dtype": "model"}})
    assert (told["seed"], told["hf_overrides"]) == (7, {"head_dtype": "model"})
    assert arguments()["hf_overrides"] == {"head_dtype": "float32"}


def test_an_engine_with_a_given_cache_starts_beside_others_on_its_device():
    """Of an 80 GiB device an engine and a rank hold 30: vLLM's own check of what is free."""
    from vllm.config import CacheConfig
    from vllm.v1.worker.utils import request_memory

    device = SimpleNamespace(total_memory=80 << 30, free_memory=50 << 30, device_="cuda:0")

    def needs(**engine):
        told = arguments(**engine)
        cache = CacheConfig(gpu_memory_utilization=told["gpu_memory_utilization"])
        return request_memory(device, cache)

    assert needs(kv_cache_gb=24) < 1 << 30
    assert needs(gpu_memory_utilization=0.5) == 40 << 30
    with pytest.raises(ValueError, match="less than desired GPU memory utilization"):
        needs(gpu_memory_utilization=0.9)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_recipes_switch_makes_vllm_invariant_to_its_batch(deterministic, monkeypatch):
    from vllm import envs

    # Whatever is set here, pytest takes back.
    for name in ("VLLM_BATCH_INVARIANT", "OMP_NUM_THREADS", "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    settings = WorkerSettings(MODEL, RolloutConfig(), None, None, 0, deterministic=deterministic)
    set_environment(settings)
    assert envs.environment_variables["VLLM_BATCH_INVARIANT"]() is deterministic
