"""DeepSpeed's configuration of ZeRO-3, for the policy and for its frozen reference."""

from __future__ import annotations

from typing import Any

from learner.config import LearnerConfig


def frozen(config: LearnerConfig) -> dict[str, Any]:
    """Return the configuration of a model that is partitioned, but not trained."""
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": config.gpus_per_rank > 0,
        # DeepSpeed's 5e8 elements would be 2 GB of buffer on every rank, whatever the model.
        "reduce_bucket_size": 50_000_000 if config.gpus_per_rank else 4_000_000,
    }
    if config.offload_parameters:
        zero["offload_param"] = _in_host_memory(config)
    out: dict[str, Any] = {
        # DeepSpeed asks for these two, but batches and accumulation are ours (`learner.steps`).
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 1 << 40,
        "zero_optimization": zero,
    }
    if config.dtype == "bfloat16":
        out["bf16"] = {"enabled": True}
        # Of 60 micro-batches, bfloat16 sums are 1 % off.
        out["data_types"] = {"grad_accum_dtype": "fp32"}
        # Otherwise the sum over ranks is rounded to bfloat16 in each micro-batch.
        out["communication_data_type"] = "fp32"
    return out


def trained(config: LearnerConfig) -> dict[str, Any]:
    """Return the configuration of the policy, with its optimizer."""
    out = frozen(config)
    parameters: dict[str, Any] = {
        "lr": config.lr,
        "betas": list(config.betas),
        "weight_decay": config.weight_decay,
    }
    # Offloaded states need DeepSpeed's own CPU Adam; elsewhere torch's needs no compiler.
    if config.offload_optimizer:
        out["zero_optimization"]["offload_optimizer"] = _in_host_memory(config)
    else:
        parameters["torch_adam"] = True
    out["optimizer"] = {"type": "AdamW", "params": parameters}
    return out


def _in_host_memory(config: LearnerConfig) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": config.gpus_per_rank > 0}
