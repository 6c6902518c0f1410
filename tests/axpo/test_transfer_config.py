"""What a recipe may say about the way of weights to engines, and what it may not."""

import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError

DEMO = "deploy/recipes/demo.yaml"
ADAPTERS = "learner.lora={sync: adapters}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [ADAPTERS, "learner.check_sync=true"],
            "learner.check_sync=True: compares whole weights, and learner.lora.sync='adapters' "
            "sends none; choose learner.lora.sync='merged'",
        ),
        (
            [ADAPTERS, "rollout.sleep_level=2"],
            "rollout.sleep_level=2: drops the base weights, and learner.lora.sync='adapters' does "
            "not send them again; choose rollout.sleep_level=1",
        ),
        (
            ["learner.lora={sync: adapters, rank: 513}"],
            "learner.lora.rank=513: with sync='adapters' at most 512, which is what vLLM takes; "
            "choose sync='merged'",
        ),
        (
            ["rollout.engine.options={tensor_parallel_size: 2}"],
            "rollout.engine.options.tensor_parallel_size: the weight sync relies on it; set "
            "rollout.engine.tensor_parallel_size instead",
        ),
        (
            ["rollout.engine.options={pipeline_parallel_size: 2}"],
            "rollout.engine.options.pipeline_parallel_size: the weight sync relies on it; an "
            "engine has tensor_parallel_size processes and no others",
        ),
        (
            ["rollout.engine.options={enable_lora: true}"],
            "rollout.engine.options.enable_lora: the weight sync relies on it; set "
            "learner.lora.sync instead",
        ),
        (
            ["rollout.engine.options={gpu_memory_utilization: 0.99}"],
            "rollout.engine.options.gpu_memory_utilization: set "
            "rollout.engine.gpu_memory_utilization instead",
        ),
        (
            ["rollout.engine.options={max_model_len: 512}"],
            "rollout.engine.options.max_model_len: set rollout.max_context_tokens instead",
        ),
        (
            ["rollout.engine.options={logprobs_mode: raw_logprobs}"],
            "rollout.engine.options.logprobs_mode: would change what is sampled or its "
            "log-probabilities, and the learner relies on them",
        ),
        (["learner.sync_s=0"], "learner.sync_s=0: Input should be greater than 0"),
        (["rollout.sleep_level=3"], "rollout.sleep_level=3: Input should be 1 or 2"),
    ],
)
def test_a_sync_that_cannot_work_is_refused(overrides, message):
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEMO, overrides)
    assert str(caught.value) == f"{DEMO}: {message}"


@pytest.mark.parametrize("changes", [["learner.sync_s=600"], ["rollout.health_s=60"]])
def test_an_engine_may_be_silent_for_as_long_as_a_sync_takes(changes):
    """NCCL brings all weights in one call, and the engine answers nothing meanwhile."""
    nodes = "deploy/recipes/qwen3-vl-8b-thinking-two-nodes.yaml"
    with pytest.raises(AxpoError, match=r"rollout\.health_s=.*must be at least learner\.sync_s="):
        load_recipe(nodes, changes)
    load_recipe(nodes, ["learner.sync_s=600", "rollout.health_s=600"])
    load_recipe(nodes, [*changes, "learner.lora={sync: adapters}"])
    # In buckets, each of which is a call.
    load_recipe("deploy/recipes/qwen3-vl-8b-thinking.yaml", changes)


def test_engines_have_room_for_adapters_only_if_they_come_alone():
    assert load_recipe(DEMO).lora_rank is None
    assert load_recipe(DEMO, ["learner.lora={rank: 4}"]).lora_rank is None
    assert load_recipe(DEMO, ["learner.lora={rank: 4, sync: adapters}"]).lora_rank == 4


def test_the_defaults_are_the_careful_ones():
    recipe = load_recipe(DEMO, ["learner.lora={}"])
    assert recipe.rollout.sleep_level == 1
    assert recipe.learner.lora.sync == "merged"
    assert recipe.learner.sync_s == 120
