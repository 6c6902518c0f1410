"""A rollout worker as the pool sees it: the one place that calls the worker's Ray actor."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from axpo.spans import Span, spans
from rollout_workers.settings import ForkRequest
from rollout_workers.trajectory import Question, SpecialTokens, Trajectory

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

START_DEADLINE_S = 900.0
"""Seconds for an engine to load a model, and for a replacement to get the weights.

An 8B model takes minutes from a cold disk.
"""
_SHUTDOWN_S = 20.0
_KILL_S = 60.0


@dataclass(frozen=True)
class Process:
    """The process of an actor."""

    node: str
    pid: int


class WorkerClient:
    """Call the methods of one worker.

    Calls whose time depends on the load return the object reference: the pool waits for it, may
    cancel it, and hands it on. All others have a deadline, and raise TimeoutError after it. Both
    raise what Ray raises if the actor died or its code raised.
    """

    def __init__(self, actor: ActorHandle, health_s: float) -> None:
        """Wrap an actor handle; `health_s` is the deadline of a sign of life."""
        self.actor = actor
        """The handle itself. The learner gets it, and sends weights to it."""
        self._health_s = health_s

    def rollout(
        self,
        question: Question,
        n: int,
        step: int,
        *,
        temperature: float | None,
        evaluating: bool,
    ) -> list[ObjectRef[Any]]:
        """Ask for the rollouts of a question; see `RolloutWorker.rollout`.

        Returns:
            References to the group and to the images of each rollout (`HandsOver.rollout`).
        """
        call = self.actor.rollout.options(num_returns=1 + n)
        if temperature is None and not evaluating:
            # Ray serializes each argument apart, also one that is its default: a tenth of the call.
            return call.remote(question, n, step)
        return call.remote(question, n, step, temperature=temperature, evaluating=evaluating)

    def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> list[ObjectRef[Any]]:
        """Ask for the continuations of a prefix; see `RolloutWorker.fork`.

        Returns:
            References to the resample and to the images of each continuation (`HandsOver.fork`).
        """
        call = self.actor.fork.options(num_returns=1 + request.k)
        return call.remote(question, source, request, step)

    def sleep(self) -> ObjectRef[None]:
        """Ask the engine to give its memory away."""
        return self.actor.sleep.remote()

    def wake(self, tag: str) -> ObjectRef[None]:
        """Ask the engine to take back the memory of `weights` or of `kv_cache`."""
        return self.actor.wake.remote(tag)

    async def ready(self) -> SpecialTokens:
        """Wait until the engine serves."""
        return await within(self.actor.ready.remote(), START_DEADLINE_S)

    async def process(self) -> Process:
        """Return the actor's process."""
        return await within(self.actor.__ray_call__.remote(_process_of), START_DEADLINE_S)

    async def start_spans(self) -> list[Span]:
        """Return what the actor's process did until now, and when."""
        return await within(self.actor.__ray_call__.remote(spans), self._health_s)

    async def ping(self) -> None:
        """Ask for a sign of life."""
        await within(self.actor.ping.remote(), self._health_s)

    async def stats(self) -> dict[str, float]:
        """Return `RolloutWorker.engine_stats`."""
        return await within(self.actor.engine_stats.remote(), self._health_s)

    async def shutdown(self) -> None:
        """End the engine."""
        await within(self.actor.shutdown.remote(), _SHUTDOWN_S)

    def kill(self) -> None:
        """Kill the actor without waiting for it."""
        ray.kill(self.actor)


async def end_process(process: Process) -> None:
    """Return when a process is gone.

    A stopped process ignores Ray, but not SIGKILL. Raises TimeoutError or what Ray raises.
    """
    # Soft, because the node may be gone; then the task runs elsewhere and kills nothing.
    on_its_node = NodeAffinitySchedulingStrategy(process.node, soft=True)
    task = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=on_its_node)
    await within(task.remote(process), _KILL_S)


async def within(reference: ObjectRef[Any], seconds: float) -> Any:
    """Return the value of an object reference; raise TimeoutError if it is not there in time."""
    # `wait` leaves the future alone after the deadline; `wait_for` would cancel it.
    value = as_future(reference)
    done, _ = await asyncio.wait([value], timeout=seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return value.result()


def as_future(reference: ObjectRef[Any]) -> asyncio.Future[Any]:
    """Return an object reference as a future of the running loop.

    Nothing is logged if the reference ends in an error and nobody waits for it any more.
    """
    future: asyncio.Future[Any] = asyncio.wrap_future(reference.future())
    future.add_done_callback(_take_error)
    return future


def cancel(reference: ObjectRef[Any]) -> None:
    """Cancel a call whose answer nobody wants, so that the worker does not go on with it."""
    # After the end of the session this would start another one.
    if ray.is_initialized():
        ray.cancel(reference)


def _take_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _process_of(_: object) -> Process:
    return Process(ray.get_runtime_context().get_node_id(), os.getpid())


def _kill(process: Process) -> None:
    """Kill a process of this node."""
    # On another node the process id is somebody else's. A node that is gone took the process with
    # it.
    if ray.get_runtime_context().get_node_id() != process.node:
        return
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
