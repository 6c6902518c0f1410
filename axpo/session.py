"""Start what a command needs: a Ray session, tool servers, rollout workers, learner ranks."""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from axpo import private
from axpo.actor_output import collected
from axpo.config import Recipe, hub_name
from axpo.errors import AxpoError
from axpo.placement import Parts, Placed, check_fits, inspect_nodes, reserved
from axpo.spans import span
from axpo.tasks import Task
from axpo.texts import one_line
from learner.learner import Learner, Start
from rollout_workers.causes import ActorsLost, cause_of, root_of
from rollout_workers.fleet import Log, WorkersFailed, no_log
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from tool_server.config import ToolServerConfig
from tool_server.pool import ToolPool, start_tool_servers
from tool_server.tool import ToolUnavailable

CONNECT_S = 10.0
"""Seconds in which the head of a cluster must accept a connection."""


@contextmanager
def ray_session(
    recipe: Recipe, *, learner: bool = True, workers: bool = True, logs: Path | None = None
) -> Iterator[None]:
    """Join the Ray cluster of the environment, or start a local one for this process.

    The environment names a cluster in `ray job submit` and by RAY_ADDRESS.

    Args:
        recipe: what shall run in it.
        learner: the recipe's learner will be started.
        workers: the recipe's rollout workers and tool servers will be started.
        logs: folder that takes what all processes print, on every node; None: Ray keeps it.

    Raises:
        AxpoError: the cluster cannot hold what will be started.
        ActorsLost: actors or nodes were lost that the block could not do without.
    """
    # A caller may have joined a cluster already.
    if not ray.is_initialized():
        with span("ray"):
            _join_or_start()
    try:
        with collected(logs):
            check_fits(recipe, Parts(learner, workers))
            yield
    except (RayError, WorkersFailed) as error:
        # An actor's own exception keeps its traceback: it is a fault in somebody's code.
        if isinstance(error, WorkersFailed):
            raise ActorsLost(str(error)) from error
        if isinstance(root_of(error), RayError):
            raise ActorsLost(cause_of(error)) from error
        raise
    finally:
        ray.shutdown()


def start_beside(work: Callable[[], object]) -> None:
    """Join or start Ray for this process, and do some work meanwhile, in a thread.

    The check of a model is 4 s of imports; Ray's processes take as long to start. If the work
    raises, the session ends and the error is raised.
    """
    with ThreadPoolExecutor(1, "beside-ray") as thread:
        working = thread.submit(work)
        try:
            if not ray.is_initialized():
                with span("ray"):
                    _join_or_start()
        finally:
            # What is wrong with the work is raised first: it says more than a missing cluster.
            error = working.exception()
            if error is not None:
                ray.shutdown()
                raise error


def _join_or_start() -> None:
    variables = _actor_environment()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
        try:
            ray.init(address, runtime_env={"env_vars": variables}, **quiet)
        except (ConnectionError, ValueError) as error:
            reason = one_line(str(error) or type(error).__name__)
            raise AxpoError(f"RAY_ADDRESS={address}: cannot join a cluster: {reason}") from error
        return
    with private.files() as workers, _token_is_kept():
        workers["env_vars"] |= variables
        folder = private.session_folder()
        # "local": without it Ray joins a cluster of this folder, even one that is dead, and waits.
        ray.init("local", include_dashboard=False, _temp_dir=folder, runtime_env=workers, **quiet)


def _check_answers(address: str) -> None:
    """Raise AxpoError if nobody listens at the address: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if "//" in address or not port.isdigit():
        return  # ray://..., auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        reason = one_line(error.strerror or str(error))
        raise AxpoError(f"RAY_ADDRESS={address}: no cluster answers there: {reason}") from error


@contextmanager
def _token_is_kept() -> Iterator[None]:
    """Keep Ray from warning of its token: `private.files` has seen to it that others lack it."""
    ours = logging.getLogger("ray._private.authentication.authentication_token_setup")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(before)


@contextmanager
def places(
    recipe: Recipe, parts: Parts, model: str | None = None, run: Path | None = None
) -> Iterator[Placed]:
    """Reserve places for the actors of a recipe, on nodes that can hold them.

    Args:
        recipe: what is placed.
        parts: which actors.
        model: the model that the engines load, if it is not the recipe's.
        run: the folder that the learner's ranks will write into, if they will.

    Raises:
        AxpoError: the cluster has no room, or a node lacks something; the node is named.
    """
    models = {local_path(model or recipe.model)}
    if parts.learner and recipe.reference is not None:
        models.add(local_path(recipe.reference))
    with reserved(recipe, parts) as placed:
        inspect_nodes(placed.plan, recipe, sorted(models), None if run is None else str(run))
        yield placed


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
    config: ToolServerConfig, evaluation_only: Collection[str] = (), placed: Placed | None = None
) -> Iterator[ToolPool]:
    """Start tool servers, without waiting for them, and close them at the end.

    Args:
        config: the tools, and how many servers.
        evaluation_only: names of the tools that only evaluations see.
        placed: where they stand; None: where Ray puts them.
    """
    tools = start_tool_servers(config, evaluation_only, placed.servers if placed else ())
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
    recipe: Recipe, task: Task, model: str, log: Log = no_log, placed: Placed | None = None
) -> Iterator[tuple[RolloutPool, ToolPool]]:
    """Start tool servers and rollout workers. The tools serve; the engines may still be loading.

    Args:
        recipe: which tools and workers.
        task: gives the system text and verifies answers.
        model: folder or hub name of the model that the engines load.
        log: takes what happens to the workers.
        placed: where they stand; None: their places are reserved here, and no learner's.
    """
    if placed is None:
        with (
            places(recipe, Parts(learner=False), model) as alone,
            rollout_actors(recipe, task, model, log, alone) as actors,
        ):
            yield actors
        return
    # Engines report entropies only if asked: they come from top-k log-probabilities.
    resamples = recipe.algorithm == "axpo"
    with tool_servers(recipe.all_tools, recipe.evaluation.tools, placed) as tools:
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
            deterministic=recipe.deterministic,
        )
        # Engines and tools start side by side. A tool that cannot start is found first.
        pool = RolloutPool(settings, log=log, places=placed.engines)
        try:
            await_tools(tools)
            yield pool, tools
        finally:
            pool.shutdown()


@contextmanager
def learner_ranks(recipe: Recipe, placed: Placed | None = None) -> Iterator[Learner]:
    """Start the recipe's ZeRO-3 ranks with the model loaded.

    Args:
        recipe: which ranks.
        placed: where they stand; None: their places are reserved here, and no engine's.
    """
    if placed is None:
        with (
            places(recipe, Parts(workers=False)) as alone,
            learner_ranks(recipe, alone) as learner,
        ):
            yield learner
        return
    start = Start(
        seed=recipe.seed,
        reference=local_path(recipe.reference or recipe.model),
        serving=recipe.serving,
        places=placed.ranks,
        network=recipe.network,
    )
    learner = Learner(local_path(recipe.model), recipe.learner, start)
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
