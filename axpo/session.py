"""Start what a command needs: a Ray session, tool servers, rollout workers, learner ranks."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import ray

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.tasks import Task
from learner.learner import Learner
from rollout_workers.fleet import Log
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from tool_server.config import ToolServerConfig
from tool_server.pool import ToolPool, start_tool_servers
from tool_server.tool import ToolUnavailable


@contextmanager
def ray_session(recipe: Recipe, learner: bool = True, workers: bool = True) -> Iterator[None]:
    """Join the Ray cluster of the environment (`ray job submit`, RAY_ADDRESS), else start a local one for this process.

    Raises AxpoError where the cluster cannot hold the recipe.
    """
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
    # glibc gives freed blocks back to the kernel and faults them in again every step. Keeping them took a training step of
    # the tiny model outside this system from 0.45 s to 0.37 s.
    return {
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_MMAP_THRESHOLD_": "8589934592",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def tool_servers(
    config: ToolServerConfig, evaluation_only: Collection[str] = ()
) -> Iterator[ToolPool]:
    """Tool servers, starting; closed at the end. The tools named in `evaluation_only` are hidden but from evaluations."""
    tools = start_tool_servers(config, evaluation_only)
    try:
        yield tools
    finally:
        tools.shutdown()


def await_tools(tools: ToolPool) -> None:
    """Returns once every tool serves. Raises AxpoError with one line that names the tool that cannot start here, and why."""
    try:
        tools.ready()
    except ToolUnavailable as error:
        raise AxpoError(str(error)) from None


@contextmanager
def rollout_actors(
    recipe: Recipe, task: Task, model: str, log: Log = lambda event, **fields: None
) -> Iterator[tuple[RolloutPool, ToolPool]]:
    """Tool servers and rollout workers on `model`. The tools serve; the engines may still be loading."""
    with tool_servers(recipe.all_tools, recipe.evaluation.tools) as tools:
        settings = WorkerSettings(
            model=local_path(model),
            config=recipe.rollout,
            tools=tools,
            system=task.system,
            verify=task.verify,
            run_seed=recipe.seed,
            want_entropies=recipe.algorithm == "axpo" and recipe.resampler.ranking.needs_entropies,
        )
        pool = RolloutPool(settings, log=log)
        try:
            await_tools(tools)
            yield pool, tools
        finally:
            pool.shutdown()


@contextmanager
def learner_ranks(recipe: Recipe) -> Iterator[Learner]:
    """The recipe's ZeRO-3 ranks with the model loaded."""
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
    """An absolute folder for a model: as it is, or downloaded from the hub once. Raises AxpoError where that fails."""
    if os.path.isdir(model):
        return os.path.abspath(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return snapshot_download(model)
    except (HfHubHTTPError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        raise AxpoError(
            f"model={model!r}: not a folder, and the hub did not give it ({type(error).__name__})"
        ) from None
