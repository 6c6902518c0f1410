"""Tier 2: engines and ranks together. It needs a GPU build of vLLM, Ray, and in part two GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

if find_spec("ray") is None or find_spec("vllm") is None:
    pytest.skip("needs Ray and a GPU build of vLLM", allow_module_level=True)

from axpo.config import load_recipe
from axpo.session import ray_session
from axpo.training.actors import Actors, training_actors
from learner.credit import TrainItem
from rollout_workers.trajectory import Group, PolicySegment, Trajectory
from tests.gpu.device import CUDA, GIB, timed
from tests.gpu.figures import Figures
from tests.gpu.model import build
from tests.learner.multimodal import make_items

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]
RECIPE = "deploy/recipes/debug.yaml"
GPUS = torch.cuda.device_count() if CUDA else 0
needs_two = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")

ON_GPU = (
    *("learner.ranks=1", "learner.gpus_per_rank=1", "learner.dtype=bfloat16"),
    *("rollout.gpus_per_worker=1", "rollout.engine.dtype=bfloat16", "rollout.engine.kv_cache_gb=2"),
    "rollout.engine.enforce_eager=false",
)
ON_CPU = ("learner.ranks=1", "rollout.engine.kv_cache_gb=0.25")
COLOCATED = (*ON_GPU, "rollout.engine.weight_transfer=ipc") if CUDA else ON_CPU
SHORT = ("rollout.max_turns=1", "rollout.max_turn_tokens=64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("gpu") / "model")


@contextmanager
def started(folder: str, *changes: str) -> Iterator[tuple[Actors, Any]]:
    """Give the actors of a small run, with the learner's weights on the engines, and its task."""
    recipe = load_recipe(RECIPE, [f"model={folder}", *SHORT, *changes])
    task = recipe.task.load()
    with ray_session(recipe), training_actors(recipe, task) as actors:
        actors.policy.publish()
        yield actors, task


def generated(actors: Actors, task: Any, step: int = 0) -> list[Group]:
    """Return the groups of eight questions; those of one step have the same seeds each time."""
    questions = [task.train(index) for index in range(8)]
    futures = [actors.pool.run(actors.pool.group(question, step)) for question in questions]
    return [future.result(600)[0] for future in futures]


def rollouts(groups: list[Group]) -> list[Trajectory]:
    return [rollout for group in groups for rollout in group.rollouts]


def tokens(groups: list[Group]) -> list[list[int]]:
    return [rollout.response_ids.tolist() for rollout in rollouts(groups)]


def as_items(groups: list[Group]) -> list[TrainItem]:
    """Return the rollouts as items that train on every token of the policy."""
    items = []
    for group in groups:
        for rollout in group.rollouts:
            mask = rollout.policy_mask
            items.append(TrainItem(group.question, rollout, mask.astype(np.float32), mask, 1.0))
    return items


def gap(actors: Actors, groups: list[Group]) -> np.ndarray:
    """Return |engine's - learner's| log-probability of every sampled token, in nats."""
    items = as_items(groups)
    found = actors.learner.logprobs(items)
    apart = []
    for item, values in zip(items, found, strict=True):
        apart.append(np.abs(values - item.trajectory.logprobs)[item.mask])
    return np.concatenate(apart)


@pytest.mark.parametrize("eager", [False, True] if CUDA else [True])
def test_engine_and_learner_compute_the_same_probabilities(
    eager: bool, folder: str, figures: Figures
) -> None:
    """With CUDA graphs (not eager) and without."""
    changes = (*COLOCATED, f"rollout.engine.enforce_eager={str(eager).lower()}")
    with started(folder, *changes, "rollout.colocated=true") as (actors, task):
        generated(actors, task, step=7)  # what is compiled at first use does not count
        begun = time.monotonic()
        groups = generated(actors, task)
        seconds = time.monotonic() - begun
        apart = gap(actors, groups)
    sampled = sum(int(rollout.policy_mask.sum()) for rollout in rollouts(groups))
    figures.add(
        f"engine_{'eager' if eager else 'cuda_graphs'}",
        sampled_tokens_per_s=sampled / seconds,
        gap_mean_nats=apart.mean(),
        gap_max_nats=apart.max(),
    )
    assert apart.mean() < (0.02 if CUDA else 1e-3)


def held_of_device(rank: Any) -> float:
    """Return the bytes that a rank's process holds of its GPU, or of the memory of a CPU."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.memory_reserved())
    from pathlib import Path

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * 4096)


def held(actors: Actors) -> float:
    """Return the GiB of the rank that holds most."""
    import ray

    asked = [rank.__ray_call__.remote(held_of_device) for rank in actors.learner._ranks]
    return max(ray.get(asked, timeout=60)) / GIB


def test_a_colocated_step_gives_memory_to_the_engine_and_repeats_its_outputs(
    folder: str, figures: Figures
) -> None:
    repeating = ("deterministic=true",) if CUDA else ()
    with started(folder, *COLOCATED, *repeating, "rollout.colocated=true") as (actors, task):
        floor = held(actors)
        before = generated(actors, task)
        # No update: the engine sleeps and wakes, and the weights are sent again.
        actors.policy.update([])
        _, publishing = timed(actors.policy.publish)
        assert tokens(generated(actors, task)) == tokens(before)
        metrics = actors.policy.update(make_items(folder, 8))
        training = held(actors)
        actors.policy.publish()
        after = generated(actors, task)
        running = held(actors)
        assert metrics["skipped"] == 0
        versions = {
            segment.policy_version
            for rollout in rollouts(after)
            for segment in rollout.segments
            if isinstance(segment, PolicySegment)
        }
        assert versions == {2}
        assert gap(actors, after).mean() < (0.02 if CUDA else 1e-3)
    figures.add(
        "colocated_step",
        floor_gib=floor,
        training_gib=training,
        engines_running_gib=running,
        publish_s=publishing,
        update_s=metrics["seconds"],
    )
    # A narrow model on a CPU is smaller than what else a process holds.
    if CUDA:
        assert running <= 1.15 * floor + 0.1


@needs_two
@pytest.mark.parametrize("transfer", ["nccl", "sparse_nccl"])
def test_weights_go_to_another_gpu_by_nccl(transfer: str, folder: str, figures: Figures) -> None:
    changes = (*ON_GPU, f"rollout.engine.weight_transfer={transfer}", "learner.check_sync=true")
    with started(folder, *changes) as (actors, task):
        seconds = []
        for _ in range(2):
            actors.policy.update(make_items(folder, 8))
            # check_sync compares every weight, to the bit.
            _, took = timed(actors.policy.publish)
            seconds.append(took)
        assert gap(actors, generated(actors, task)).mean() < 0.02
    figures.add(f"sync_{transfer}", first_s=seconds[0], second_s=seconds[1])


@needs_two
def test_an_engine_of_two_gpus_gets_the_weights_and_computes_the_same(
    folder: str, figures: Figures
) -> None:
    changes = (
        *COLOCATED,
        *("learner.ranks=2", "rollout.gpus_per_worker=2", "rollout.colocated=true"),
        *("rollout.engine.tensor_parallel_size=2", "learner.check_sync=true"),
    )
    with started(folder, *changes) as (actors, task):
        actors.policy.update(make_items(folder, 8))
        _, seconds = timed(actors.policy.publish)
        apart = gap(actors, generated(actors, task))
    figures.add("tensor_parallel_2", publish_s=seconds, gap_mean_nats=apart.mean())
    assert apart.mean() < 0.02
