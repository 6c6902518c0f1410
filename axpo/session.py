"""Start what a command needs: a Ray session, tool servers, rollout workers, learner ranks."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import ray

from axpo.config import Recipe, hub_name
from axpo.errors import AxpoError
from axpo.tasks import Task
from learner.learner import Learner
from rollout_workers.fleet import Log, no_log
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from tool_server.config import ToolServerConfig
from tool_server.pool import ToolPool, start_tool_servers
from tool_server.tool import ToolUnavailable


@contextmanager
def ray_session(recipe: Recipe, *, learner: bool = True, workers: bool = True) -> Iterator[None]:
    """Join the Ray cluster of the environment, or start a local one for this process.

    The environment names a cluster in `ray job submit` and by RAY_ADDRESS.

    Args:
        recipe: what shall run in it.
        learner: the recipe's learner will be started.
        workers: the recipe's rollout workers and tool servers will be started.

    Raises:
        AxpoError: the cluster cannot hold what will be started.
    """
    # A caller may have joined a cluster already.
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"include_dashboard": False}
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="warning",
            runtime_env={"env_vars": _actor_environment()},
            **local,
        )
    try:
        have = ray.cluster_resources()
        recipe.check_resources(
            have.get("CPU", 0), have.get("GPU", 0), learner=learner, workers=workers
        )
        yield
    finally:
        ray.shutdown()


def _actor_environment() -> dict[str, str]:
    # glibc gives freed blocks back to the kernel, and faults them in again every step. Keeping them
    # took a training step of the tiny model, outside this system, from 0.45 s to 0.37 s.
    return {
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_MMAP_THRESHOLD_": "8589934592",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def tool_servers(
    config: ToolServerConfig, evaluation_only: Collection[str] = ()
) -> Iterator[ToolPool]:
    """Start tool servers, without waiting for them, and close them at the end.

    Args:
        config: the tools, and how many servers.
        evaluation_only: names of the tools that only evaluations see.
    """
    tools = start_tool_servers(config, evaluation_only)
    try:
        yield tools
    finally:
        tools.shutdown()


def await_tools(tools: ToolPool) -> None:
    """Return once every tool serves.

    Raises:
        AxpoError: a tool cannot start here; one line that names it and says why.
    """
    try:
        tools.ready()
    except ToolUnavailable as error:
        raise AxpoError(str(error)) from None


@contextmanager
def rollout_actors(
    recipe: Recipe, task: Task, model: str, log: Log = no_log
) -> Iterator[tuple[RolloutPool, ToolPool]]:
    """Start tool servers and rollout workers. The tools serve; the engines may still be loading.

    Args:
        recipe: which tools and workers.
        task: gives the system text and verifies answers.
        model: folder or hub name of the model that the engines load.
        log: takes what happens to the workers.
    """
    # Engines report entropies only if asked: they come from top-k log-probabilities.
    resamples = recipe.algorithm == "axpo"
    with tool_servers(recipe.all_tools, recipe.evaluation.tools) as tools:
        settings = WorkerSettings(
            model=local_path(model),
            config=recipe.rollout,
            images=recipe.images,
            tools=tools,
            system=task.system,
            verify=task.verify,
            run_seed=recipe.seed,
            want_entropies=resamples and recipe.resampler.ranking.needs_entropies,
            lora_rank=recipe.lora_rank,
        )
        # Engines and tools start side by side. A tool that cannot start is found first.
        pool = RolloutPool(settings, log=log)
        try:
            await_tools(tools)
            yield pool, tools
        finally:
            pool.shutdown()


@contextmanager
def learner_ranks(recipe: Recipe) -> Iterator[Learner]:
    """Start the recipe's ZeRO-3 ranks with the model loaded."""
    learner = Learner(
        local_path(recipe.model),
        recipe.learner,
        seed=recipe.seed,
        reference=local_path(recipe.reference or recipe.model),
        serving=recipe.serving,
    )
    try:
        yield learner
    finally:
        learner.shutdown()


@functools.cache
def local_path(model: str) -> str:
    """Return the absolute folder of a model: as it is, or downloaded from the hub once.

    Raises:
        AxpoError: there is no such folder, and the hub did not give the model.
    """
    if os.path.isdir(model):
        return os.path.abspath(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        name, revision = hub_name(model)
        return snapshot_download(name, revision=revision)
    except (HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        raise AxpoError(
            f"model={model!r}: not a folder, and the hub did not give it ({type(error).__name__})"
        ) from None
