"""What is known of a question between the moment it is asked and the batch that takes it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from learner.credit import informative
from rollout_workers.trajectory import Group, Question, Resample


class Prefix(NamedTuple):
    """Which prefix of a group is forked."""

    source: int  # the rollout
    tokens: int  # its first response tokens, which are kept


class Fork(NamedTuple):
    """A fork that was started."""

    prefix: Prefix
    task: asyncio.Task[Resample | None]  # None: it was dropped or given up


@dataclass(eq=False)
class CarriedForks:
    """Forks of a group that is trained without them (`resampler.schedule: carry`)."""

    prefixes: tuple[Prefix, ...]
    result: Future[tuple[Resample, ...]] = field(default_factory=Future)
    outcomes: dict[Prefix, Resample | None] = field(default_factory=dict)  # of those that are back

    @property
    def back(self) -> tuple[Resample, ...]:
        """Return what came of those that are back, without what was dropped."""
        resamples = [resample for resample in dict(self.outcomes).values() if resample is not None]
        return in_credit_order(resamples)

    @property
    def under_way(self) -> tuple[Prefix, ...]:
        """Return the prefixes whose continuations are not there yet."""
        return tuple(prefix for prefix in self.prefixes if prefix not in self.outcomes)


def prefix_of(resample: Resample) -> Prefix:
    """Return the prefix that a resample continues."""
    return Prefix(resample.source, resample.prefix_tokens)


def in_credit_order(resamples: Iterable[Resample]) -> tuple[Resample, ...]:
    """Return resamples in the order that credit sees, whatever order they came in."""
    return tuple(sorted(resamples, key=prefix_of))


@dataclass(eq=False)
class QuestionInFlight:
    """A question that was asked and is not trained on yet."""

    index: int  # in the task's order
    question: Question
    version: int  # of the policy that begins it
    batch: int = 0  # number of the batch that it is asked in
    result: Future[Group | None] = field(default_factory=Future)  # None: infrastructure broke it

    # These change on the pool's loop. The trainer's thread reads `has_rollouts` only.
    has_rollouts: bool = False  # its forks may not be there yet
    offered: bool = False  # the resampler was told that its rollouts are there, or lost
    group: Group | None = None  # its rollouts, as long as they may be forked
    forks: list[Fork] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # no further fork will come

    # Its forks, if its group does not wait for them. Set before its result.
    carried: CarriedForks | None = None

    # Why it cannot be asked: its data is at fault. Set before its result, which is None then.
    unusable: str | None = None

    # Whether enough others of its batch were faster (`rollout.oversample`). Its result is None.
    aborted: bool = False
    task: asyncio.Task[Group | None] | None = None  # what follows it, while it runs

    def give_forks_up(self) -> None:
        """End carried forks, if there are any: nobody will take them."""
        if self.carried is not None:
            self.carried.result.cancel()

    @property
    def complete(self) -> bool:
        """Return whether its group is there, with its forks unless they are carried."""
        result = self.result
        return result.done() and result.exception() is None and result.result() is not None

    @property
    def broken(self) -> bool:
        """Return whether it is finished and infrastructure is why it has no group."""
        return not self.complete and self.unusable is None and not self.aborted

    @property
    def uninformative(self) -> bool:
        """Return whether its group is there and teaches nothing."""
        return self.complete and not informative(self.finished_group)

    @property
    def finished_group(self) -> Group:
        """Return its group; only if `complete`."""
        group = self.result.result()
        assert group is not None
        return group

    def release(self) -> None:
        """Keep its group and its forks no longer: a batch has them.

        The question itself lives until the last one of its batch is finished.
        """
        self.result, self.carried = Future(), None


@dataclass(eq=False)
class Batch:
    """The questions that are asked together: they share one budget of the resampler."""

    number: int  # counts the batches of a run; the seeds of rollouts and forks derive from it
    questions: Sequence[QuestionInFlight]
    wanted: int  # of these questions; when so many have their rollouts, the others are aborted
    there: int = 0  # questions whose rollouts are there, all of them scored


class InFlight:
    """Hold the questions that are asked and not taken, and wait until enough of them are finished.

    Adding, finishing and forgetting a question cost the same however many are in flight: a large
    run has tens of thousands. All methods are for the trainer's thread. Questions finish on other
    threads, but only while nobody holds the `lock`: who holds it sees one moment.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition()
        # Dictionaries, because they keep an order. The questions are found by their results: a
        # result that remembered its question would be a cycle, and keep a group alive.
        self._questions: dict[Future[Group | None], QuestionInFlight] = {}
        self._finished: dict[QuestionInFlight, None] = {}
        self._unfinished: dict[int, dict[QuestionInFlight, None]] = {}  # by their versions
        self._failed: list[QuestionInFlight] = []
        self._ready: Callable[[], bool] = _never  # what the trainer waits for

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[QuestionInFlight]:
        return iter(self._questions.values())

    def add(self, asked: QuestionInFlight) -> None:
        """Take in a question that was asked, finished or not."""
        with self.lock:
            self._questions[asked.result] = asked
            self._unfinished.setdefault(asked.version, {})[asked] = None
        asked.result.add_done_callback(self._finish)

    def forget(self, gone: Iterable[QuestionInFlight]) -> None:
        """Let questions go: a batch took them, or they are given up."""
        with self.lock:
            for asked in gone:
                del self._questions[asked.result]
                self._finished.pop(asked, None)
                self._leave_unfinished(asked)

    def finished(self) -> list[QuestionInFlight]:
        """Return the finished questions, whatever came of them, in the order they finished in."""
        return list(self._finished)

    def overdue(self, version: int) -> list[QuestionInFlight]:
        """Return the unfinished questions that were begun by `version` or an earlier one."""
        begun = [of_one for v, of_one in self._unfinished.items() if v <= version]
        return list(chain.from_iterable(begun))

    def wait_for_finished(self, count: int) -> None:
        """Wait until `count` questions are finished, or all.

        Raises:
            Exception: what a question's own task raised, as soon as it did.
        """
        self._wait_until(lambda: len(self._finished) >= min(count, len(self._questions)))

    def wait_for_overdue(self, version: int) -> None:
        """Wait until no question is unfinished that `version` or an earlier one began.

        Raises:
            Exception: what a question's own task raised, as soon as it did.
        """
        self._wait_until(lambda: all(v > version for v in self._unfinished))

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        with self.lock:
            self._ready = ready
            self.lock.wait_for(self._ends_wait)
            self._ready = _never
            # A bug in one question ends the run at once, whatever the others are doing.
            for asked in self._failed:
                asked.result.result()

    def _ends_wait(self) -> bool:
        return bool(self._failed) or self._ready()

    def _finish(self, result: Future[Group | None]) -> None:
        with self.lock:
            asked = self._questions.get(result)
            if asked is None:  # it was given up, and then cancelled
                return
            self._leave_unfinished(asked)
            self._finished[asked] = None
            if result.cancelled() or result.exception() is not None:
                self._failed.append(asked)
            # Waking the trainer at every finish would cost more than all else here.
            if self._ends_wait():
                self.lock.notify_all()

    def _leave_unfinished(self, asked: QuestionInFlight) -> None:
        of_its_version = self._unfinished.get(asked.version, {})
        of_its_version.pop(asked, None)
        if not of_its_version:
            self._unfinished.pop(asked.version, None)


def _never() -> bool:
    return False
