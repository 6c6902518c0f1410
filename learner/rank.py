"""One ZeRO-3 rank of the learner.

DeepSpeed, the policy and its frozen reference live in this process and nowhere else.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from learner import buffers, extensions, manifest, zero
from learner.checkpoint import (
    Export,
    Saving,
    Write,
    in_memory,
    load_other_ranks,
    no_code,
    random_states,
    save_hf,
    set_random_states,
)
from learner.config import LearnerConfig, RankSettings
from learner.credit import TrainItem
from learner.determinism import repeat_kernels
from learner.images import image_processor
from learner.parking import Memory, needs_memory
from learner.passes import Passes
from learner.policy import Policy, load_policy
from learner.profiling import Profiling
from learner.reference import Reference, without_adapters, without_gradient
from learner.schedule import lr_factor
from learner.sync import WeightSync
from learner.update import Updater
from learner.weights import full_shape
from rollout_workers.trajectory import Floats


class LearnerRank:
    """Do one rank's part of the learner's work.

    Every method is collective: all ranks are called with the same arguments.
    """

    def __init__(self, settings: RankSettings) -> None:
        """Join the process group and load the policy, and the reference if there is a KL term."""
        config = settings.config
        self.config = config
        self.rank = settings.rank
        self._settings = settings
        self._join()
        self.engine = _trained_engine(self._load_policy(), config)
        processor = image_processor(settings.model, settings.serving.images)
        # After the policy: without its adapters it may be the reference itself.
        frozen = self._load_reference()
        model = self.engine.module.model
        passes = Passes(model, processor, config, settings.rank, self.engine.device)
        reference = self._reference(frozen)
        self.updater = Updater(self.engine, reference, passes, config, settings.seed)
        engines = [self.engine] if frozen is None else [self.engine, frozen]
        self.memory = Memory(engines, torch.device(self.engine.device))
        self._sync = WeightSync(model, config, settings.serving, settings.rank)
        self._saving = Saving()
        self._profiling = Profiling(settings.rank)
        self._files: Any = None  # process group of the thread that saves

    @needs_memory
    def update(self, items: list[TrainItem]) -> dict[str, float]:
        """See `Learner.update`."""
        self._saving.check()
        return self.updater.update(items)

    @needs_memory
    def fine_tune(self, items: list[TrainItem]) -> dict[str, float]:
        """See `Learner.fine_tune`."""
        self._saving.check()
        return self.updater.fine_tune(items)

    @needs_memory
    def logprobs(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """See `Updater.logprobs`."""
        return self.updater.logprobs(items)

    @needs_memory
    def entropies(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """See `Updater.entropies`."""
        return self.updater.entropies(items)

    @needs_memory
    def send_weights(self, handles: list[Any], version: int, address: tuple[str, int]) -> None:
        """See `WeightSync.send`."""
        self._sync.send(handles, version, address)

    @needs_memory
    def check_weights(self) -> list[str]:
        """See `WeightSync.check`."""
        return self._sync.check()

    @needs_memory
    def save(self, folder: str, hf_dtype: str | None) -> None:
        """Write hf and state into the partial folder, then a manifest, then rename.

        Args:
            folder: the checkpoint; its partial folder exists.
            hf_dtype: of the weights in hf; None: the learner's.

        Raises:
            OSError: the disk has no room for it.
        """
        self.finish_save()
        target = Path(folder)
        self._save_weights(target, hf_dtype, _at_once)
        self._save_state(target)
        manifest.finish(target, [], self._about(), self.rank, partial(_gather, None))

    @needs_memory
    def begin_save(self, folder: str, hf_dtype: str | None) -> None:
        """Do as `save` does, but return when this rank's part is in host memory."""
        self.finish_save()
        target = Path(folder)
        writes: list[Write] = []
        self._save_weights(target, hf_dtype, writes.append)
        with in_memory(self.engine.checkpoint_engine, writes.append):
            self._save_state(target)
        if self._files is None:
            # Of its own, and on the CPU: the training's collectives go on beside it.
            timeout = timedelta(seconds=self.config.deadline_s)
            self._files = dist.new_group(backend="gloo", timeout=timeout)
        gather = partial(_gather, self._files)
        self._saving.start(
            partial(manifest.finish, target, writes, self._about(), self.rank, gather)
        )

    def finish_save(self) -> None:
        """Wait for a save under way; raise what it raised."""
        self._saving.wait(self.config.deadline_s)

    @needs_memory
    def load(self, folder: str, ranks: int) -> None:
        """Restore weights, optimizer and schedule, and with as many ranks the random states.

        Args:
            folder: what `save` wrote.
            ranks: how many ranks wrote it.
        """
        state = Path(folder) / "state"
        with no_code():
            if ranks == self.config.ranks:
                _, client = self.engine.load_checkpoint(str(state), tag="learner")
                set_random_states(client["rng"])
            else:
                client = load_other_ranks(self.engine, state / "learner", self.rank)
        self.updater.skipped_in_a_row = client["skipped_in_a_row"]

    def begin_profile(self) -> None:
        """See `Learner.begin_profile`."""
        self._profiling.begin()

    def end_profile(self, folder: str) -> None:
        """See `Learner.end_profile`."""
        self._profiling.end(Path(folder))

    def release_memory(self) -> None:
        """See `Learner.release_memory`."""
        self.memory.release()

    def reclaim_memory(self) -> None:
        """See `Learner.reclaim_memory`."""
        self.memory.reclaim()

    def _join(self) -> None:
        """Join the process group of the ranks."""
        config = self.config
        os.environ |= {
            "MASTER_ADDR": self._settings.address,
            "MASTER_PORT": str(self._settings.port),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(config.ranks),
            "LOCAL_RANK": "0",
        }
        if self._settings.serving.deterministic:
            repeat_kernels()
        torch.set_num_threads(config.threads)
        torch.manual_seed(self._settings.seed)
        # First: DeepSpeed's process group would compile what this switches off.
        extensions.prepare(offload_optimizer=config.offload_optimizer)
        deepspeed.init_distributed(
            "nccl" if config.gpus_per_rank else "gloo",
            timeout=timedelta(seconds=config.deadline_s),
            verbose=False,
        )

    def _load_policy(self) -> Policy:
        config = self.config
        return load_policy(
            self._settings.model,
            zero.trained(config),
            temperature=self._settings.serving.temperature,
            checkpointing=config.gradient_checkpointing,
            adapters=config.lora,
        )

    def _load_reference(self) -> Any:
        """Return DeepSpeed's engine of a frozen model; None if the KL term needs none."""
        config, settings = self.config, self._settings
        if config.kl_beta == 0 or self._adapters_are_all():
            return None
        model = load_policy(
            settings.reference,
            zero.trained(config),
            temperature=settings.serving.temperature,
            checkpointing=config.gradient_checkpointing,
        )
        frozen = model.requires_grad_(False).eval()
        engine = deepspeed.initialize(model=frozen, config=zero.frozen(config))[0]
        buffers.check(engine.module.model)
        return engine

    def _reference(self, frozen: Any) -> Reference | None:
        """Return the reference policy of the KL term; None without one."""
        if self.config.kl_beta == 0:
            return None
        if self._adapters_are_all():
            return without_adapters(self.engine)
        return without_gradient(frozen)

    def _adapters_are_all(self) -> bool:
        """Tell whether the policy without its adapters is the reference."""
        settings = self._settings
        return self.config.lora is not None and settings.reference == settings.model

    def _save_weights(
        self, target: Path, hf_dtype: str | None, write: Callable[[Write], object]
    ) -> None:
        dtype = getattr(torch, hf_dtype or self.config.dtype)
        self._check_space(target.parent, dtype)
        folder = manifest.partial(target) / "hf"
        bucket_bytes = self.config.bucket_mb << 20
        export = Export(Path(self._settings.model), folder, dtype, bucket_bytes)
        save_hf(self.engine.module.model, export, self.rank, write)

    def _save_state(self, target: Path) -> None:
        state = {"rng": random_states(), "skipped_in_a_row": self.updater.skipped_in_a_row}
        folder = manifest.partial(target) / "state"
        self.engine.save_checkpoint(str(folder), tag="learner", client_state=state)

    def _about(self) -> dict[str, int]:
        return {"ranks": self.config.ranks, "updates": self.engine.global_steps}

    def _check_space(self, folder: Path, dtype: torch.dtype) -> None:
        """Raise OSError before anything is written if the disk is too full.

        A rank that failed half-way would leave the others waiting for it.
        """
        parameters = sum(math.prod(full_shape(p)) for p in self.engine.module.model.parameters())
        # Weights for Hugging Face, for DeepSpeed, and AdamW's float32 weights and two moments.
        needed = parameters * (dtype.itemsize + self.engine.module.head.weight.element_size() + 12)
        free = [shutil.disk_usage(folder).free if self.rank == 0 else 0]
        dist.broadcast_object_list(free, 0)
        if free[0] < needed:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint takes about {needed / 1e6:.0f} MB, "
                f"{free[0] / 1e6:.0f} MB are free in {folder}",
            )


def _trained_engine(policy: Policy, config: LearnerConfig) -> Any:
    """Return DeepSpeed's engine of a policy, with optimizer and learning-rate schedule."""

    def factor(step: int) -> float:
        return lr_factor(step, config)

    def scheduler(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    with extensions.no_muon_kernels():
        engine = deepspeed.initialize(
            model=policy,
            model_parameters=trainable,
            config=zero.trained(config),
            lr_scheduler=scheduler,
        )[0]
    # An engine may cast what it is given.
    buffers.check(engine.module.model)
    return engine


def _at_once(write: Write) -> None:
    write()


def _gather(group: Any, mine: Any) -> list[Any]:
    """Return what every rank of the process group gives, in their order."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group)
    return everyone
