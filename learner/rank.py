"""One ZeRO-3 rank of the learner: DeepSpeed, the policy and its frozen reference live here and nowhere else."""

from __future__ import annotations

import math
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learner import extensions
from learner.batch import MicroBatch, Row, StepImages, VisionTokens, collate, make_row
from learner.checkpoint import save_hf
from learner.config import LearnerConfig
from learner.credit import TrainItem
from learner.loss import nll_loss, policy_loss
from learner.plan import Steps, plan_rows
from learner.policy import Policy, load_policy
from learner.schedule import lr_factor
from learner.weights import Receivers, full_shape, stream_shared_memory, vllm_sender
from rollout_workers.trajectory import Floats


class LearnerRank:
    """Every method is collective: all ranks are called with the same arguments."""

    def __init__(self, model: str, config: LearnerConfig, seed: int, reference: str | None, rank: int, address: str, port: int) -> None:
        """Joins the process group at address:port and loads the policy; `reference` is loaded where the KL term needs it."""
        from transformers import AutoProcessor

        self.model_folder = model
        self.config = config
        self.rank = rank
        os.environ |= {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(config.ranks),
            "LOCAL_RANK": "0",
        }
        torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        self.device = torch.device("cuda", 0) if config.gpus_per_rank else torch.device("cpu")
        backend = "nccl" if config.gpus_per_rank else "gloo"
        extensions.prepare(config.offload_optimizer)
        deepspeed.init_distributed(backend, timeout=timedelta(seconds=config.deadline_s), verbose=False)
        self.processor = AutoProcessor.from_pretrained(model).image_processor
        policy = self._policy(model)
        text = policy.model.config
        self.vision = VisionTokens(text.image_token_id, text.vision_start_token_id, text.vision_end_token_id)
        # A patch costs the vision tower about what a token costs the language model, in the ratio of their parameters.
        self.patch_cost = count_parameters(policy.model.model.visual) / count_parameters(policy.model.model.language_model)
        self.engine = deepspeed.initialize(
            model=policy,
            model_parameters=list(policy.parameters()),
            config=zero_config(config),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, config)),
        )[0]
        self.reference: Any = None
        if config.kl_beta > 0 and reference is not None:
            frozen = self._policy(reference).requires_grad_(False).eval()
            self.reference = deepspeed.initialize(model=frozen, config=zero_config(config, train=False))[0]
        self._receivers: Receivers | None = None
        self._sender: Any = None

    def update(self, items: list[TrainItem], loss: str) -> dict[str, float]:
        """One optimizer step on the sum of the items' losses; see Learner.update."""
        started = time.monotonic()
        steps, rows, images = self._plan(items)
        reference = self.reference if loss == "policy" else None
        sums = torch.zeros(7, dtype=torch.float64, device=self.device)
        ratio_max = torch.zeros(1, device=self.device)
        lr = self.engine.get_lr()[0]
        for s, step in enumerate(steps):
            # gradient_accumulation_steps is 1: the boundary is ours, so the number of micro-batches may change each step.
            self.engine.set_gradient_accumulation_boundary(s == len(steps) - 1)
            batch = self._micro_batch(step, rows, images)
            sums[6] += batch.input_ids.numel()
            with torch.no_grad():
                reference_logprobs = reference(batch)[0] if reference is not None else None
            logprobs, _ = self.engine(batch)
            if loss == "nll":
                total = nll_loss(logprobs, batch.weights)
                sums += _stack(total, total)
            else:
                out = policy_loss(
                    logprobs,
                    batch.old_logprobs,
                    batch.advantages,
                    batch.weights,
                    reference_logprobs,
                    clip_low=self.config.clip_low,
                    clip_high=self.config.clip_high,
                    kl_beta=self.config.kl_beta,
                )
                total = out.loss
                sums += _stack(total, out.policy_loss, out.kl, out.clipped, out.ratio, out.gap)
                ratio_max = torch.maximum(ratio_max, out.ratio_max)
            # DeepSpeed averages gradients over ranks; the loss is a sum over items wherever they lie.
            self.engine.backward(total * self.config.ranks)
        dist.all_reduce(sums)
        dist.all_reduce(ratio_max, dist.ReduceOp.MAX)
        norm, applied = float("nan"), False
        if bool(torch.isfinite(sums[0])):
            self.engine.step()  # skips by itself where the gradient is not finite
            norm, applied = float(self.engine.get_global_grad_norm()), self.engine.was_step_applied()
        else:
            self.engine.optimizer.zero_grad()
        trained = sum(len(row.targets) for row in rows)
        metrics = {
            "loss": float(sums[0]),
            "policy_loss": float(sums[1]),
            "grad_norm": norm,
            "lr": lr,
            "skipped": float(not applied),
            "trained_tokens": float(trained),
            "tokens": float(sum(len(row.ids) for row in rows)),
            "computed_tokens": float(sums[6]),
            "micro_steps": float(len(steps)),
            "seconds": time.monotonic() - started,
        }
        if loss == "policy":
            kl, clipped, ratio, gap = (float(x) / trained for x in sums[2:6])
            metrics |= {"kl": kl, "clip_fraction": clipped, "ratio_mean": ratio, "ratio_max": float(ratio_max), "logprob_gap_mean": gap}
        return metrics

    def logprobs(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """This rank's share: (index of the item, [R] log-probabilities of its masked tokens, 0 elsewhere)."""
        steps, rows, images = self._plan(items)
        out: list[tuple[int, Floats]] = []
        for step in steps:
            with torch.no_grad():
                flat = self.engine(self._micro_batch(step, rows, images))[0].cpu().numpy()
            mine = step[self.rank]
            for i, values in zip(mine, np.split(flat, np.cumsum([len(rows[i].targets) for i in mine])[:-1]), strict=True) if mine else ():
                whole = np.zeros(len(items[i].mask), np.float32)
                whole[items[i].mask] = values
                out.append((i, whole))
        return out

    def send_weights(self, handles: list[Any], version: int, address: tuple[str, int]) -> None:
        """Bring all receivers to this policy, as `version`. Raises what a receiver raised, or GetTimeoutError."""
        if self._receivers is None or self._receivers.handles != handles:
            self._receivers = Receivers(handles, self.config.receiver_ranks, self.config.deadline_s)
            if self.config.weight_transfer != "shared_memory":
                model, bucket = self.engine.module.model, self.config.bucket_mb << 20
                self._sender = vllm_sender(self.config.weight_transfer, model, self._receivers, self.rank, address, bucket)
            elif self.rank == 0:
                self._receivers.init_weight_transfer_engine({})
        self._receivers.version = version
        if self._sender is not None:
            self._sender.send_weights()
            return
        if self.rank == 0:
            self._receivers.start_weight_update()
        self._stream("update_weights")
        if self.rank == 0:
            self._receivers.finish_weight_update()

    def check_weights(self) -> list[str]:
        """Names of the parameters that some receiver does not hold as this policy does (rank 0; else empty)."""
        answers = self._stream("weights_equal")
        return sorted({name for bucket in answers for names in bucket for name in names})

    def save(self, folder: str, hf_dtype: str | None) -> None:
        """Write folder/hf and folder/state beside it under a temporary name, then rename: a killed save never looks complete."""
        target = Path(folder)
        temporary = target.with_name(f".{target.name}.partial")
        if self.rank == 0 and temporary.exists():
            shutil.rmtree(temporary)
        dist.barrier()
        dtype = getattr(torch, hf_dtype or self.config.dtype)
        save_hf(self.engine.module.model, Path(self.model_folder), temporary / "hf", dtype, self.rank)
        self.engine.save_checkpoint(str(temporary / "state"), tag="learner")
        dist.barrier()
        if self.rank == 0:
            temporary.rename(target)
        dist.barrier()

    def load(self, folder: str) -> None:
        """Restore weights, optimizer and scheduler from folder/state, written by as many ranks."""
        path, _ = self.engine.load_checkpoint(str(Path(folder) / "state"), tag="learner")
        if path is None:
            raise FileNotFoundError(f"{folder}/state holds no learner checkpoint")

    def _policy(self, folder: str) -> Policy:
        return load_policy(
            folder, zero_config(self.config), temperature=self.config.temperature, checkpointing=self.config.gradient_checkpointing
        )

    def _plan(self, items: list[TrainItem]) -> tuple[Steps, list[Row], StepImages]:
        """The same plan on every rank; each then builds its own micro-batches only."""
        images = StepImages(self.processor)
        rows = [make_row(item, images.add(item), images, self.vision.image_pad) for item in items]
        questions = [item.question.id for item in items]
        c = self.config
        steps = plan_rows(rows, questions, lambda key: self.patch_cost * images.patches(key), c.ranks, c.micro_batch_tokens, c.layout)
        return steps, rows, images

    def _micro_batch(self, step: list[list[int]], rows: list[Row], images: StepImages) -> MicroBatch:
        """This rank's micro-batch."""
        return collate([rows[i] for i in step[self.rank]], images, self.vision, self.config.layout).to(self.device)

    def _stream(self, method: str) -> list[list[Any]]:
        receivers = self._receivers if self.rank == 0 else None
        return stream_shared_memory(self.engine.module.model, receivers, method, self.config.bucket_mb << 20)


def zero_config(config: LearnerConfig, train: bool = True) -> dict[str, Any]:
    """DeepSpeed's configuration; `train` False: the frozen reference, without optimizer."""
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": config.gpus_per_rank > 0,
        # DeepSpeed's 5e8 elements would be 2 GB of buffer on every rank, whatever the model.
        "reduce_bucket_size": 50_000_000 if config.gpus_per_rank else 4_000_000,
    }
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.gpus_per_rank > 0}
    out: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 1 << 40,
        "zero_optimization": zero,
    }
    if config.dtype == "bfloat16":
        out["bf16"] = {"enabled": True}
    if train:
        if config.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.gpus_per_rank > 0}
        # Offloaded states need DeepSpeed's own CPU Adam; elsewhere torch's needs no compiler.
        parameters = {"lr": config.lr, "betas": list(config.betas), "weight_decay": config.weight_decay}
        out["optimizer"] = {"type": "AdamW", "params": parameters | ({} if config.offload_optimizer else {"torch_adam": True})}
    return out


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters before ZeRO-3 partitioned them."""
    return sum(math.prod(full_shape(parameter)) for parameter in model.parameters())


def _stack(*values: Tensor) -> Tensor:
    """[7] float64: the values, then zeros."""
    out = torch.zeros(7, dtype=torch.float64, device=values[0].device)
    out[: len(values)] = torch.stack([value.detach().double() for value in values])
    return out
