"""Adapters alone, on real vLLM: each version answers with its own, over the base weights."""

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save

from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import PolicySegment
from tests.rollout_workers.test_engine import (
    CONFIG,
    QUESTION,
    Tools,
    get,
    hugging_face_gap,
    reward,
    rolled,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")


@pytest.fixture(scope="module")
def pool(cluster: None, model: str) -> Iterator[RolloutPool]:
    config = CONFIG.model_copy(update={"n": 2})
    settings = WorkerSettings(
        model, config, Tools(), reward, run_seed=3, system="look closely", lora_rank=RANK
    )
    pool = RolloutPool(settings)
    pool.ready()
    yield pool
    pool.shutdown()


def adapters(reference, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random factors A and B on the targets of the language model, by the layer's name."""
    noise = torch.Generator().manual_seed(seed)
    factors = {}
    for name, module in reference.named_modules():
        if "language_model" in name and name.endswith(TARGETS):
            a = 0.1 * torch.randn(RANK, module.in_features, generator=noise)
            b = 0.1 * torch.randn(module.out_features, RANK, generator=noise)
            factors[name] = a, b
    return factors


def payload(factors) -> dict:
    """What the learner sends (`learner.lora.payload`)."""
    tensors = {}
    for layer, (a, b) in factors.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = a
        tensors[f"base_model.model.{layer}.lora_B.weight"] = b
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}
    return {"config": config, "tensors": save(tensors)}


def test_each_version_answers_with_its_adapters_over_the_base_weights(pool, model, chat):
    from transformers import Qwen3VLForConditionalGeneration

    worker = pool.workers[0]
    answers = [rolled(worker, QUESTION, 2, 1)]
    for version in (1, 2):
        reference = Qwen3VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
        factors = adapters(reference, seed=version)
        get(worker.start_weight_update.remote())
        get(worker.update_weights.remote(payload(factors)))
        assert get(worker.finish_weight_update.remote(version)) == version
        group = rolled(worker, QUESTION, 2, 1)
        # Not over the version before: each begins at the base again.
        for layer, (a, b) in factors.items():
            reference.get_submodule(layer).weight.data += ALPHA / RANK * b @ a
        gap = hugging_face_gap(reference, QUESTION, group, chat)
        print(f"\nversion {version}: {len(gap)} tokens, gap mean {gap.mean():.1e}")
        assert gap.mean() < 1e-3
        for t in group.rollouts:
            versions = {s.policy_version for s in t.segments if isinstance(s, PolicySegment)}
            assert versions == {version}
        # What the version before has left in the prefix cache is no hit.
        assert group.rollouts[0].stats.cached_tokens == 0
        answers.append(group)
    tokens = [[t.response_ids.tolist() for t in group.rollouts] for group in answers]
    assert tokens[0] != tokens[1] != tokens[2] != tokens[0]


def test_an_update_without_adapters_is_refused(pool):
    """The last test of this engine: it must be replaced."""
    worker = pool.workers[0]
    get(worker.start_weight_update.remote())
    with pytest.raises(RuntimeError, match="weight update 3 brought no adapters"):
        get(worker.finish_weight_update.remote(3))
    with pytest.raises(RuntimeError, match="a weight update failed"):
        get(worker.ping.remote())
