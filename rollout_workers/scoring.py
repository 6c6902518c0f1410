"""Score rollouts with the user's verifier, which is not trusted to work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from axpo.errors import ordinary
from rollout_workers.interfaces import Verify
from rollout_workers.trajectory import EndReason, Question, Trajectory

T = TypeVar("T")


@dataclass(frozen=True)
class Scorer:
    """Ask a verifier for rewards, within a deadline and a number of attempts."""

    verify: Verify
    deadline_s: float  # of one attempt
    attempts: int

    async def scored(self, question: Question, trajectory: Trajectory) -> Trajectory:
        """Return the trajectory with its reward.

        One that infrastructure cut short has none. If every attempt fails, the trajectory ends
        as `verifier_failure`, without a reward and with the reason in `stats.fault`.
        """
        if trajectory.end.infrastructure:
            return trajectory
        fault = ""
        for _ in range(self.attempts):
            try:
                reward = await self._reward(question, trajectory.answer)
            except Exception as error:  # a verifier is the user's: anything may happen in it
                fault = f"{type(error).__name__}: {error}"
                continue
            if math.isfinite(reward):
                return replace(trajectory, reward=reward)
            fault = f"gave {reward}"
        # One line of bounded length: it goes into the event log.
        return replace(
            trajectory,
            end=EndReason.VERIFIER_FAILURE,
            stats=replace(trajectory.stats, fault=" ".join(fault.split())[:500]),
        )

    async def _reward(self, question: Question, answer: str | None) -> float:
        async with asyncio.timeout(self.deadline_s):
            return float(await _in_own_thread(partial(self.verify, question, answer)))


def _in_own_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in a thread of its own, which is left behind if nobody waits any more.

    In a pool of threads, a function that hangs would hold a place for ever.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    # From here on nobody can cancel the future, so the thread can always settle it.
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as raised:
            future.set_exception(ordinary(raised))

    threading.Thread(target=work, name="verifier", daemon=True).start()
    return asyncio.wrap_future(future)
