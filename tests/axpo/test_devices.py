"""Which ranks and engines may share a GPU: every combination that cannot work, with its reason."""

import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError

COLOCATED = "deploy/recipes/qwen3-vl-8b-thinking.yaml"
SEPARATE = "deploy/recipes/qwen3-vl-8b-thinking-two-nodes.yaml"
DEMO = "deploy/recipes/demo.yaml"
HALF = "rollout.gpus_per_worker=0.5"
SHARED = "rollout.engine.weight_transfer=shared_memory"
SPLIT = "rollout.engine.tensor_parallel_size=2"


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        # One process a GPU, says NCCL.
        (
            COLOCATED,
            ["rollout.engine.weight_transfer=nccl"],
            "rollout.engine.weight_transfer='nccl': with rollout.colocated a rank and an engine",
        ),
        (
            COLOCATED,
            ["rollout.engine.weight_transfer=sparse_nccl"],
            "rollout.engine.weight_transfer='sparse_nccl': with rollout.colocated a rank and an",
        ),
        (
            SEPARATE,
            [HALF, "rollout.engine.kv_cache_gb=10"],
            "rollout.engine.weight_transfer='nccl': engines with gpus_per_worker=0.5 share a GPU",
        ),
        (
            SEPARATE,
            [HALF, "rollout.engine={kv_cache_gb: 10, weight_transfer: sparse_nccl}"],
            "rollout.engine.weight_transfer='sparse_nccl': engines with gpus_per_worker=0.5 share",
        ),
        # One GPU, says CUDA IPC.
        (
            SEPARATE,
            ["rollout.engine.weight_transfer=ipc"],
            "rollout.engine.weight_transfer='ipc': CUDA IPC passes memory between processes on",
        ),
        # GPUs shared, and nobody says how.
        (
            SEPARATE,
            ["rollout.gpus_per_worker=0"],
            "rollout.gpus_per_worker=0: with learner.gpus_per_rank=1 every engine would take",
        ),
        (COLOCATED, ["rollout.gpus_per_worker=0"], "rollout.gpus_per_worker=0: with learner.gpus"),
        (
            SEPARATE,
            [HALF],
            "rollout.engine.gpu_memory_utilization=0.85: engines with gpus_per_worker=0.5 share",
        ),
        (
            DEMO,
            [HALF, "rollout.engine.kv_cache_gb=null"],
            "rollout.engine.gpu_memory_utilization=0.9: engines with gpus_per_worker=0.5 share",
        ),
        (
            COLOCATED,
            ["rollout.engine.kv_cache_gb=null"],
            "rollout.engine.kv_cache_gb=None: with rollout.colocated the engine must not take",
        ),
        # Every GPU has one rank and one process of an engine.
        (COLOCATED, ["learner.ranks=4"], "learner.ranks=4: with rollout.colocated every GPU has"),
        (
            COLOCATED,
            [SPLIT, "rollout.gpus_per_worker=2"],
            "learner.ranks=8: with rollout.colocated every GPU has one rank and one process",
        ),
        (SEPARATE, [SPLIT, HALF], "rollout.gpus_per_worker=0.5: a fraction of a GPU holds one"),
        (
            COLOCATED,
            [SPLIT, HALF, "rollout.workers=4"],
            "rollout.gpus_per_worker=0.5: a fraction of a GPU holds one process",
        ),
        # Ranks on CPUs.
        (
            DEMO,
            ["rollout.engine.weight_transfer=ipc"],
            "rollout.engine.weight_transfer='ipc': needs learner.gpus_per_rank=1",
        ),
        (
            DEMO,
            ["rollout.colocated=true", "rollout.gpus_per_worker=1"],
            "rollout.colocated=True: with rollout.gpus_per_worker=1 needs learner.gpus_per_rank=1",
        ),
    ],
)
def test_what_cannot_share_a_gpu_is_refused_with_the_reason(recipe, changes, message):
    with pytest.raises(AxpoError) as caught:
        load_recipe(recipe, changes)
    assert str(caught.value).startswith(f"{recipe}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (COLOCATED, ["rollout.engine={gpu_memory_utilization: 0.5, weight_transfer: ipc}"]),
        (COLOCATED, ["rollout.engine.weight_transfer=shared_memory"]),
        (COLOCATED, [HALF]),
        (COLOCATED, [SPLIT, "rollout.gpus_per_worker=2", "rollout.workers=4"]),
        (SEPARATE, [HALF, SHARED, "rollout.engine.gpu_memory_utilization=0.45"]),
        (SEPARATE, [HALF, SHARED, "rollout.engine.kv_cache_gb=10"]),
        # Alone on its GPU, whatever its share; and adapters need no NCCL.
        (SEPARATE, [HALF, "rollout.workers=1", "rollout.engine.kv_cache_gb=10"]),
        (SEPARATE, ["rollout.gpus_per_worker=0.6", "rollout.engine.kv_cache_gb=10"]),
        (SEPARATE, [HALF, "rollout.engine.kv_cache_gb=10", "learner.lora={sync: adapters}"]),
        (DEMO, ["rollout.colocated=true"]),
        (DEMO, ["rollout.gpus_per_worker=1"]),
    ],
)
def test_what_can_work_is_taken(recipe, changes):
    load_recipe(recipe, changes)


def test_a_rank_computes_with_as_many_threads_as_it_has_cpus():
    cpus = {"0.4": 1, "1": 1, "4": 4, "6.5": 6}
    for given, threads in cpus.items():
        assert load_recipe(DEMO, [f"learner.cpus_per_rank={given}"]).learner.threads == threads
