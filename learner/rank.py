"""One ZeRO-3 rank of the learner: DeepSpeed, the policy and its frozen reference live here and nowhere else."""

from __future__ import annotations

import errno
import math
import os
import shutil
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from learner import extensions, manifest
from learner.checkpoint import (
    Saving,
    Write,
    in_memory,
    load_other_ranks,
    random_states,
    save_hf,
    set_random_states,
)
from learner.config import LearnerConfig, LoraSettings, RankSettings
from learner.credit import TrainItem
from learner.passes import Passes
from learner.policy import Policy, load_policy
from learner.schedule import lr_factor
from learner.reference import Reference, without_adapters, without_gradient
from learner.update import Updater
from learner.weights import Receivers, full_shape, stream_shared_memory, vllm_sender
from rollout_workers.trajectory import Floats


class LearnerRank:
    """Every method is collective: all ranks are called with the same arguments."""

    def __init__(self, settings: RankSettings) -> None:
        """Join the process group and load the policy, and the reference if there is a KL term."""
        from transformers import AutoProcessor

        config, model = settings.config, settings.model
        self.model_folder = model
        self.config = config
        self.serving = settings.serving
        self.rank = settings.rank
        os.environ |= {
            "MASTER_ADDR": settings.address,
            "MASTER_PORT": str(settings.port),
            "RANK": str(settings.rank),
            "WORLD_SIZE": str(config.ranks),
            "LOCAL_RANK": "0",
        }
        torch.set_num_threads(config.threads)
        torch.manual_seed(settings.seed)
        self.device = torch.device("cuda", 0) if config.gpus_per_rank else torch.device("cpu")
        backend = "nccl" if config.gpus_per_rank else "gloo"
        extensions.prepare(config.offload_optimizer)
        deepspeed.init_distributed(
            backend, timeout=timedelta(seconds=config.deadline_s), verbose=False
        )
        policy = self._policy(model, config.lora)
        self.engine = deepspeed.initialize(
            model=policy,
            model_parameters=[
                parameter for parameter in policy.parameters() if parameter.requires_grad
            ],
            config=zero_config(config),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: lr_factor(step, config)
            ),
        )[0]
        processor = AutoProcessor.from_pretrained(model).image_processor
        passes = Passes(
            self.engine.module.model, processor, config, settings.rank, self.engine.device
        )
        reference = self._reference(model, settings.reference)
        self.updater = Updater(self.engine, reference, passes, config, settings.seed)
        self._receivers: Receivers | None = None
        self._sender: Any = None
        self._saving = Saving()
        self._files: Any = None  # process group of the thread that saves

    def update(self, items: list[TrainItem]) -> dict[str, float]:
        """See `Learner.update`."""
        self._saving.check()
        return self.updater.update(items)

    def fine_tune(self, items: list[TrainItem]) -> dict[str, float]:
        """See `Learner.fine_tune`."""
        self._saving.check()
        return self.updater.fine_tune(items)

    def logprobs(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """This rank's share: (index of the item, [R] log-probabilities of its masked tokens, 0 elsewhere)."""
        return self.updater.logprobs(items)

    def entropies(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """This rank's share: (index of the item, [R] nats at its masked tokens, 0 elsewhere)."""
        return self.updater.entropies(items)

    def send_weights(self, handles: list[Any], version: int, address: tuple[str, int]) -> None:
        """Bring all receivers to this policy, as `version`. Raises what a receiver raised, or GetTimeoutError."""
        if self._receivers is None or self._receivers.handles != handles:
            self._receivers = Receivers(
                handles, self.serving.ranks_per_engine, self.config.deadline_s
            )
            if self.serving.weight_transfer != "shared_memory":
                model, bucket = self.engine.module.model, self.config.bucket_mb << 20
                self._sender = vllm_sender(
                    self.serving.weight_transfer, model, self._receivers, self.rank, address, bucket
                )
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
        answers = self._stream("differing_weights")
        return sorted({name for bucket in answers for names in bucket for name in names})

    def save(self, folder: str, hf_dtype: str | None, wait: bool) -> None:
        """Write hf and state into the partial folder, then a manifest, then rename. Raises OSError where the disk is full.

        Without `wait` it returns when this rank's part is in host memory.
        """
        self.finish_save()
        target = Path(folder)
        temporary = manifest.partial(target)
        writes: list[Write] = []
        dtype = getattr(torch, hf_dtype or self.config.dtype)
        self._check_space(target.parent, dtype)
        write = (lambda work: work()) if wait else writes.append
        save_hf(
            self.engine.module.model,
            Path(self.model_folder),
            temporary / "hf",
            dtype,
            self.rank,
            write,
        )
        state = {"rng": random_states(), "skipped_in_a_row": self.updater.skipped_in_a_row}
        with nullcontext() if wait else in_memory(self.engine.checkpoint_engine, writes.append):
            self.engine.save_checkpoint(str(temporary / "state"), tag="learner", client_state=state)
        about = {"ranks": self.config.ranks, "updates": self.engine.global_steps}
        if wait:
            manifest.finish(target, writes, about, self.rank, partial(_gather, None))
            return
        if self._files is None:
            # Of its own, and on the CPU: the training's collectives go on beside it.
            self._files = dist.new_group(
                backend="gloo", timeout=timedelta(seconds=self.config.deadline_s)
            )
        self._saving.start(
            manifest.finish, target, writes, about, self.rank, partial(_gather, self._files)
        )

    def finish_save(self) -> None:
        """Wait for a save under way. Raises what it raised."""
        self._saving.wait(self.config.deadline_s)

    def load(self, folder: str, ranks: int) -> None:
        """Restore what `save` wrote with `ranks` ranks: weights, optimizer, schedule and, with as many ranks, random states."""
        state = Path(folder) / "state"
        if ranks == self.config.ranks:
            _, client = self.engine.load_checkpoint(str(state), tag="learner")
            set_random_states(client["rng"])
        else:
            client = load_other_ranks(self.engine, state / "learner", self.rank)
        self.updater.skipped_in_a_row = client["skipped_in_a_row"]

    def _check_space(self, folder: Path, dtype: torch.dtype) -> None:
        """Before anything is written: a rank that fails half-way would leave the others waiting for it."""
        parameters = sum(math.prod(full_shape(p)) for p in self.engine.module.model.parameters())
        # Weights for Hugging Face, for DeepSpeed, and AdamW's float32 weights and two moments.
        needed = parameters * (dtype.itemsize + self.engine.module.head.weight.element_size() + 12)
        free = [shutil.disk_usage(folder).free if self.rank == 0 else 0]
        dist.broadcast_object_list(free, 0)
        if free[0] < needed:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint takes about {needed / 1e6:.0f} MB, {free[0] / 1e6:.0f} MB are free in {folder}",
            )

    def _policy(self, folder: str, adapters: LoraSettings | None = None) -> Policy:
        return load_policy(
            folder,
            zero_config(self.config),
            temperature=self.serving.temperature,
            checkpointing=self.config.gradient_checkpointing,
            adapters=adapters,
        )

    def _reference(self, model: str, reference: str) -> Reference | None:
        """Where the loss has a KL term: the policy without its adapters, or a frozen ZeRO-3 model."""
        if self.config.kl_beta == 0:
            return None
        if self.config.lora is not None and reference == model:
            return without_adapters(self.engine)
        frozen = self._policy(reference).requires_grad_(False).eval()
        return without_gradient(
            deepspeed.initialize(model=frozen, config=zero_config(self.config, train=False))[0]
        )

    def _stream(self, method: str) -> list[list[Any]]:
        receivers = self._receivers if self.rank == 0 else None
        return stream_shared_memory(
            self.engine.module.model, receivers, method, self.config.bucket_mb << 20
        )


def _gather(group: Any, mine: Any) -> list[Any]:
    """What every rank of the process group gives, in their order."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group)
    return everyone


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
        parameters = {
            "lr": config.lr,
            "betas": list(config.betas),
            "weight_decay": config.weight_decay,
        }
        out["optimizer"] = {
            "type": "AdamW",
            "params": parameters | ({} if config.offload_optimizer else {"torch_adam": True}),
        }
    return out
