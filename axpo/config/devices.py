"""Which processes may share a GPU: the combinations that cannot work, each with its reason.

What depends on the nodes of the cluster is refused by `axpo.placement.plan`.
"""

from __future__ import annotations

from learner.config import LearnerConfig, adapters_alone
from rollout_workers.config import RolloutConfig

COLOCATED_SHARE = 0.8
"""Most of a GPU that an engine may take beside a rank that has given its memory away.

A rank keeps its CUDA context, NCCL's buffers and what fragmentation holds."""


def check_devices(learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Check that ranks and engines have GPUs on which they can work, and reach each other.

    Raises:
        ValueError: they do not; the message begins with the field.
    """
    transfer = rollout.engine.weight_transfer
    if learner.gpus_per_rank == 0:
        _check_ranks_on_cpu(rollout)
        return
    if rollout.gpus_per_worker == 0:
        raise ValueError(
            "rollout.gpus_per_worker=0: with learner.gpus_per_rank=1 every engine would take the "
            "first GPU of its node, beside a rank that knows nothing of it; expected "
            f"{rollout.engine.tensor_parallel_size}, and rollout.colocated to share GPUs"
        )
    if rollout.colocated:
        _check_colocated(learner, rollout)
        return
    if transfer == "ipc":
        raise ValueError(
            "rollout.engine.weight_transfer='ipc': CUDA IPC passes memory between processes on the "
            "same GPU; use 'nccl', or rollout.colocated"
        )
    _check_shares(rollout)
    _check_one_process_a_gpu(learner, rollout)


def _check_ranks_on_cpu(rollout: RolloutConfig) -> None:
    transfer = rollout.engine.weight_transfer
    # NCCL and CUDA IPC send from a GPU.
    if transfer != "shared_memory":
        raise ValueError(
            f"rollout.engine.weight_transfer={transfer!r}: needs learner.gpus_per_rank=1; "
            "CPU ranks send through 'shared_memory'"
        )
    if rollout.colocated and rollout.gpus_per_worker:
        raise ValueError(
            f"rollout.colocated=True: with rollout.gpus_per_worker={rollout.gpus_per_worker:g} "
            "needs learner.gpus_per_rank=1; ranks on CPUs share no GPU with an engine"
        )
    _check_shares(rollout)


def _check_colocated(learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Check ranks and engines that share each GPU."""
    engine = rollout.engine
    if engine.weight_transfer in ("nccl", "sparse_nccl"):
        raise ValueError(
            f"rollout.engine.weight_transfer={engine.weight_transfer!r}: with rollout.colocated a "
            "rank and an engine share each GPU, and NCCL takes one process a GPU; use 'ipc'"
        )
    engine_gpus = rollout.workers * engine.tensor_parallel_size
    if engine_gpus != learner.ranks:
        raise ValueError(
            f"learner.ranks={learner.ranks}: with rollout.colocated every GPU has one rank and "
            f"one process of an engine; rollout.workers={rollout.workers} with "
            f"tensor_parallel_size={engine.tensor_parallel_size} have {engine_gpus}"
        )
    if engine.kv_cache_gb is None and engine.gpu_memory_utilization > COLOCATED_SHARE:
        raise ValueError(
            f"rollout.engine.kv_cache_gb=None: with rollout.colocated the engine must not take "
            f"all of the GPU; set kv_cache_gb, or gpu_memory_utilization to at most "
            f"{COLOCATED_SHARE:g} (it is {engine.gpu_memory_utilization:g})"
        )
    _check_whole_fraction(rollout)


def _check_shares(rollout: RolloutConfig) -> None:
    """Check engines that share a GPU with each other."""
    _check_whole_fraction(rollout)
    share, engine = rollout.gpus_per_worker, rollout.engine
    if not 0 < share <= 0.5:
        return
    if engine.kv_cache_gb is None and engine.gpu_memory_utilization > share:
        raise ValueError(
            f"rollout.engine.gpu_memory_utilization={engine.gpu_memory_utilization:g}: engines "
            f"with gpus_per_worker={share:g} share a GPU, so each may take at most {share:g} of "
            "its memory; lower it, or set kv_cache_gb"
        )


def _check_one_process_a_gpu(learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Refuse NCCL between a rank and engines that share a GPU with each other."""
    share, transfer = rollout.gpus_per_worker, rollout.engine.weight_transfer
    by_nccl = transfer in ("nccl", "sparse_nccl") and not adapters_alone(learner)
    if by_nccl and 0 < share <= 0.5 and rollout.workers > 1:
        raise ValueError(
            f"rollout.engine.weight_transfer={transfer!r}: engines with gpus_per_worker={share:g} "
            "share a GPU, and NCCL takes one process a GPU; use a GPU for each, or "
            "'shared_memory' on one node"
        )


def _check_whole_fraction(rollout: RolloutConfig) -> None:
    share, processes = rollout.gpus_per_worker, rollout.engine.tensor_parallel_size
    if 0 < share < 1 and processes > 1:
        raise ValueError(
            f"rollout.gpus_per_worker={share:g}: a fraction of a GPU holds one process, "
            f"tensor_parallel_size={processes} needs {processes} GPUs"
        )
