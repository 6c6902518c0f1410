"""The learner from outside.

`Learner` starts the ZeRO-3 ranks as Ray actors and turns each request into one call on all of them.
Nothing heavy is imported here: torch and DeepSpeed load in the ranks' own processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import ray

from axpo.errors import AxpoError
from axpo.quick_imports import quick_imports
from axpo.spans import Span, span, spans
from learner import manifest
from learner.config import LearnerConfig, RankSettings, Serving, adapters_alone
from learner.credit import TrainItem
from learner.network import NetworkConfig, free_port
from learner.receivers import Receivers
from learner.sending import without_pixels
from rollout_workers.causes import cause_of
from rollout_workers.garbage import pass_over_what_is_here
from rollout_workers.images import ImagesLost
from rollout_workers.joined import Joined
from rollout_workers.places import Options, Places, Wanted
from rollout_workers.trajectory import Floats

if TYPE_CHECKING:
    from ray import ObjectRef

DEATH_S = 5.0
"""Seconds for Ray to notice that a process is gone, after another one has missed it."""
PLACEMENT_S = 60.0
"""Seconds for Ray to place ranks that stand alone."""


Within: TypeAlias = Literal["deadline_s", "sync_s"]


class RanksLost(AxpoError):
    """The ranks have ended: the policy is what the last checkpoint says."""


@dataclass(frozen=True)
class Start:
    """How a learner starts, beside its model and its settings."""

    seed: int = 0
    """Of torch, and of how questions are dealt to mini-batches."""
    reference: str | None = None
    """Folder of the KL's reference policy; None: the model."""
    serving: Serving = field(default_factory=Serving)
    """The engines that will receive the weights."""
    places: Places | None = None
    """Of the ranks; None: they reserve their own."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """How the ranks find rank 0."""


class _RankActor:
    """Run one rank in a process of its own."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __repr__(self) -> str:
        # What Ray calls this process, in logs and errors.
        return f"rank-{self._index}"

    def address(self, network: NetworkConfig) -> tuple[str, int]:
        """Return the address of this node for the other processes, and a port that is free."""
        return network.host(ray.util.get_node_ip_address()), free_port()

    def start(self, settings: RankSettings) -> None:
        """Load the policy."""
        # Both are read once, when torch and DeepSpeed are imported.
        os.environ["OMP_NUM_THREADS"] = str(settings.config.threads)
        if settings.config.gpus_per_rank == 0:
            os.environ["DS_ACCELERATOR"] = "cpu"
        with span("imports"), quick_imports():
            from learner.rank import LearnerRank

        with span("model"):
            self.rank = LearnerRank(settings)
        pass_over_what_is_here()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the rank."""
        return getattr(self.rank, method)(*arguments)


class Learner:
    """Train the policy.

    Every call waits at most `config.deadline_s`, then it raises TimeoutError. If a rank fails, the
    call raises what the rank raised. If one ends, all are ended, and every call raises RanksLost.
    """

    def __init__(
        self,
        model: str,
        config: LearnerConfig,
        start: Start = Start(),
    ) -> None:
        """Start the ranks, each with the policy loaded.

        Args:
            model: a Hugging Face folder.
            config: the learner's settings.
            start: what else it starts with.

        Raises:
            ValueError: Ray cannot place the ranks.
            TimeoutError: they did not start within `config.deadline_s`.
        """
        self.config = config
        self._serving = start.serving
        self._network = start.network
        self._order = threading.Lock()
        self._lost = ""  # why the ranks were ended
        self._places = start.places or _reserve(config)
        self._ranks = [
            _rank_actor(options, index) for index, options in enumerate(self._places.options)
        ]
        try:
            address, port = self._address("start")
            first = RankSettings(
                model=os.path.abspath(model),
                reference=os.path.abspath(start.reference or model),
                config=config,
                serving=start.serving,
                seed=start.seed,
                rank=0,
                address=address,
                port=start.network.port or port,
            )
            starts = [
                rank.start.remote(replace(first, rank=i)) for i, rank in enumerate(self._ranks)
            ]
            self._wait("start", starts)
        except BaseException:
            self.shutdown()
            raise

    def update(self, items: Sequence[TrainItem]) -> dict[str, float]:
        """Take the optimizer steps of one batch on the configured objective and KL.

        There are `epochs` x `mini_batches` steps, each on the sum over its items of weight * (mean
        of the token loss over the item's trained tokens). A step whose loss or gradient is not
        finite is skipped.

        Args:
            items: those without a trained token are left out.

        Returns:
            Means over the steps: loss, policy_loss, grad_norm (before clipping).
            Counts: skipped, optimizer_steps, micro_steps, trained_tokens, tokens (images expanded,
            each sequence by itself), computed_tokens (as laid out, padding included).
            Of the whole: lr, skipped_in_a_row (up to now), seconds.
            Over the trained tokens: entropy_mean and percentiles (nats), kl (k3, to the reference),
            clip_fraction, ratio_mean, ratio_max and percentiles; with a correction its mean and
            minimum; before the first step logprob_gap_mean and logprob_gap_max (|learner's -
            engine's log-probability|) and engine_kl (KL(engine || learner)).

        Raises:
            ValueError: no item has a token to train on.
        """
        return self._all("update", sent(_trainable(items)))[0]

    def fine_tune(self, items: Sequence[TrainItem]) -> dict[str, float]:
        """Take one optimizer step on -log pi of the items' trained tokens.

        Returns:
            The metrics of `update`, without those of ratio, KL, clipping, correction and gap.

        Raises:
            ValueError: no item has a token to train on.
        """
        return self._all("fine_tune", sent(_trainable(items)))[0]

    def logprobs(self, items: Sequence[TrainItem]) -> list[Floats]:
        """Compute the policy's log-probabilities of masked tokens, bans and temperature included.

        Returns:
            For each item an array of shape [R], 0 outside its mask.

        Raises:
            ValueError: an item has no token under its mask.
        """
        return self._of_tokens("logprobs", items)

    def entropies(self, items: Sequence[TrainItem]) -> list[Floats]:
        """Compute the exact entropy of the distribution that each masked token is drawn from.

        Returns:
            For each item an array of shape [R], in nats, 0 outside its mask.

        Raises:
            ValueError: an item has no token under its mask.
        """
        return self._of_tokens("entropies", items)

    def send_weights(self, receivers: Sequence[Any], version: int) -> None:
        """Bring every engine to this policy.

        The engines get `config.deadline_s` to end the turns being sampled. From then on there are
        `config.sync_s` seconds.

        Args:
            receivers: Ray handles of rollout workers.
            version: what the policy is called from now on.

        Raises:
            Exception: what a receiver raised. The ranks can send again.
            RanksLost: a receiver was lost while ranks and receivers were in one collective, or the
                ranks did not answer in time. They have been ended.
            RuntimeError: with `check_sync`, parameters differ afterwards; they are named.
        """
        engines = Receivers(receivers)
        engines.within(self.config.deadline_s)
        engines.hold()
        try:
            address = self._address("send_weights")
            self._all("send_weights", engines.handles, version, address, within="sync_s")
        except (ray.exceptions.RayError, TimeoutError) as error:
            if self._stuck_after(error):
                self._lose(f"weight update {version} failed: {cause_of(error)}")
                raise RanksLost(self._lost) from error
            raise
        if self.config.check_sync:
            different = self._all("check_weights", within="sync_s")[0]
            if different:
                raise RuntimeError(
                    f"after weight update {version} engine and learner differ "
                    f"in {len(different)} parameters: {different}"
                )

    def save(
        self,
        folder: str,
        *,
        hf_dtype: Literal["float32", "bfloat16"] | None = None,
        add: Callable[[Path], object] | None = None,
        wait: bool = True,
    ) -> None:
        """Write a checkpoint: folder/hf (a Hugging Face model) and folder/state (for `load`).

        The folder appears whole, with a manifest of hashes, or not at all.

        Args:
            folder: of the checkpoint.
            hf_dtype: of the weights in hf; None: the learner's.
            add: called first, with the folder under its temporary name: what it puts there belongs
                to the checkpoint.
            wait: False: return when the state is in the ranks' memory, and let a thread of each
                write. An error of theirs is raised by the next `update`, `save` or `finish_save`;
                `shutdown` does not wait.

        Raises:
            FileExistsError: the folder exists.
            OSError: the disk has no room for it.
        """
        if os.path.exists(folder):
            raise FileExistsError(f"checkpoint {folder} exists")
        temporary = manifest.begin(Path(folder))
        if add is not None:
            add(temporary)
        self._all("save" if wait else "begin_save", os.path.abspath(folder), hf_dtype)

    def finish_save(self) -> None:
        """Wait for a save that was not waited for; raise OSError if it failed."""
        self._all("finish_save")

    def load(self, folder: str) -> None:
        """Restore weights, optimizer, learning-rate schedule and random states of a checkpoint.

        Another number of ranks may have written it; then the random states stay as they are.

        Raises:
            DamagedCheckpoint: a file is not what `save` wrote; it is named.
        """
        about = manifest.verify(Path(folder))
        self._all("load", os.path.abspath(folder), about["ranks"])

    def begin_profile(self) -> None:
        """Let torch's profiler record what every rank does, until `end_profile`."""
        self._all("begin_profile")

    def end_profile(self, folder: str) -> None:
        """Write what was recorded since `begin_profile`: `rank_<n>.json.gz` and `rank_<n>.txt`."""
        self._all("end_profile", os.path.abspath(folder))

    def release_memory(self) -> None:
        """Give the memory of the policy and its optimizer away until `reclaim_memory`.

        Ranks on GPUs keep them in host memory, ranks on CPUs in a file. A call that needs them in
        between takes them back while it runs.
        """
        self._all("release_memory")

    def reclaim_memory(self) -> None:
        """Take the memory back that `release_memory` gave away."""
        self._all("reclaim_memory")

    def signs_of_life(self) -> list[Any]:
        """Ask every rank for a sign of life: a reference each; it fails if the rank has ended."""
        return [rank.__ray_ready__.remote() for rank in self._ranks]

    def start_spans(self) -> list[list[Span]]:
        """Return what each rank did until now, and when."""
        return self._wait("start_spans", [rank.__ray_call__.remote(spans) for rank in self._ranks])

    def shutdown(self) -> None:
        """End the ranks and give their resources back."""
        for rank in self._ranks:
            ray.kill(rank)
        self._places.release()

    def _address(self, what: str) -> tuple[str, int]:
        """Return the address of rank 0 and a port that is free there."""
        call = self._ranks[0].address.remote(self._network)
        address: tuple[str, int] = self._wait(what, [call])[0]
        return address

    def _of_tokens(self, method: str, items: Sequence[TrainItem]) -> list[Floats]:
        if not all(item.mask.any() for item in items):
            raise ValueError(f"{method}: an item has no token under its mask")
        by_index: dict[int, Floats] = {}
        for share in self._all(method, sent(items)) if items else []:
            by_index.update(share)
        return [by_index[i] for i in range(len(items))]

    def _stuck_after(self, error: Exception) -> bool:
        """Tell whether ranks may wait for ever after a weight sync has failed."""
        # What a rank raised by itself arrives as a RayTaskError. All else: it did not answer.
        if not isinstance(error, ray.exceptions.RayTaskError):
            return True
        # A rank that raised has left the others, or its own stream, in the middle of a collective.
        return self._serving.in_one_group and not adapters_alone(self.config)

    def _lose(self, why: str) -> None:
        """End the ranks: killed, because they do not answer."""
        self._lost = self._lost or why
        for rank in self._ranks:
            ray.kill(rank)

    def _all(self, method: str, *arguments: Any, within: Within = "deadline_s") -> list[Any]:
        # Collective calls of several threads must reach every rank in one order.
        with self._order:
            if self._lost:
                raise RanksLost(self._lost)
            calls = [rank.call.remote(method, *arguments) for rank in self._ranks]
        try:
            return self._wait(method, calls, within)
        except ray.exceptions.RayError as error:
            # A node with images is gone. The other ranks wait for the one that needs them.
            if isinstance(error, ImagesLost):
                self._lose(f"{method}: {cause_of(error)}")
                raise RanksLost(self._lost) from error
            ended = _ended(calls)
            if not ended:
                raise
            # The others wait for the one that is gone, or have raised because it is gone.
            first, why = next(iter(ended.items()))
            others = f" (and {len(ended) - 1} more)" if len(ended) > 1 else ""
            self._lose(f"rank {first}{others} of the learner ended during {method}: {why}")
            raise RanksLost(self._lost) from error

    def _wait(self, what: str, references: list[Any], within: Within = "deadline_s") -> list[Any]:
        seconds = getattr(self.config, within)
        try:
            return ray.get(references, timeout=seconds)
        except ray.exceptions.GetTimeoutError as error:
            # A rank's own GetTimeoutError comes as a RayTaskError too, and says what it waited for.
            if isinstance(error, ray.exceptions.RayTaskError):
                raise
            raise TimeoutError(
                f"learner: {what} did not finish within learner.{within}={seconds:g}"
            ) from error


def _ended(calls: list[Any]) -> dict[int, str]:
    """Return the ranks whose process is gone, and why, after a call of all has failed."""
    done, _ = ray.wait(calls, num_returns=len(calls), timeout=DEATH_S)
    ended = {}
    for call in done:
        try:
            ray.get(call)
        except ray.exceptions.RayTaskError:
            continue  # it lives, and has raised
        except ray.exceptions.RayActorError as error:
            ended[calls.index(call)] = cause_of(error)
    return ended


def _trainable(items: Sequence[TrainItem]) -> list[TrainItem]:
    trainable = [item for item in items if item.mask.any()]
    if not trainable:
        raise ValueError("update: no item has a token to train on")
    return trainable


def sent(items: Sequence[TrainItem]) -> ObjectRef[list[TrainItem]]:
    """Return a reference to items for the ranks; they hold no pixels."""
    reference: ObjectRef[list[TrainItem]] = ray.put(Joined(without_pixels(items)))
    return reference


def _rank_actor(options: Options, index: int) -> Any:
    """Return the Ray handle of a new actor."""
    return ray.remote(_RankActor).options(**options).remote(index)


def _reserve(config: LearnerConfig) -> Places:
    """Return places of the ranks' own.

    All ranks or none: some of them alone would hold their CPUs and wait for the others.
    """
    wanted = Wanted("learner.ranks", config.ranks, config.cpus_per_rank, config.gpus_per_rank)
    return wanted.reserve(min(config.deadline_s, PLACEMENT_S))
