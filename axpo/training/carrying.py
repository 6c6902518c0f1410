"""Carry forks from one batch into the next (`resampler.schedule: carry`).

A batch is trained without the sources that the resampler chose. Their forks run while the learner
updates and while the next batch is generated. They are handed out with that batch, so that each
token is trained once. The last batch of a run waits for its own forks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, replace

from axpo.training.asking import Asking
from axpo.training.cursor import Kept
from axpo.training.in_flight import CarriedForks, QuestionInFlight, prefix_of
from learner.credit import Carried, Update
from rollout_workers.fleet import Log
from rollout_workers.trajectory import Group


@dataclass(frozen=True)
class _CarriedQuestion:
    """A question that was trained on, except for the sources of its forks."""

    asked: QuestionInFlight
    forks: CarriedForks
    trained: Update  # what trained the rest


class Carrying:
    """Keep what a batch left out until the next one. For the trainer's thread alone."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._carried: list[_CarriedQuestion] = []

    def hold(self, batch: Sequence[QuestionInFlight], update: Update) -> None:
        """Take in the questions of a batch; those without carried forks are done."""
        for asked in batch:
            if asked.carried is not None:
                self._carried.append(_CarriedQuestion(asked, asked.carried, update))

    def take(self, step: int) -> list[Carried]:
        """Wait for all forks that are held, and hand them out with the batch of `step`.

        Every fork has a deadline (`resampler.deadline_s`).

        Raises:
            Exception: what a fork's own task raised, as soon as it did.
        """
        carried, self._carried = self._carried, []
        done, _ = wait([held.forks.result for held in carried], return_when=FIRST_EXCEPTION)
        for result in done:
            result.result()
        handed_out: list[Carried] = []
        for held in carried:
            self._log("carried", question=held.asked.question.id, step=step)
            handed_out.append(Carried(_group(held.asked), held.trained))
            held.asked.release()
        return handed_out

    def kept(self) -> tuple[Kept, ...]:
        """Return what a checkpoint must hold."""
        return tuple(kept_of(held.asked, held.trained) for held in self._carried)

    def resume(self, kept: Sequence[Kept], asking: Asking) -> None:
        """Go on with the forks that a checkpoint holds."""
        for one in kept:
            assert one.trained is not None
            self.hold([asking.restored(one)], one.trained)

    def close(self) -> None:
        """Give up what is under way."""
        for held in self._carried:
            held.forks.result.cancel()


def kept_of(asked: QuestionInFlight, trained: Update | None = None) -> Kept:
    """Return what a checkpoint must hold of a question that is complete.

    Args:
        asked: the question.
        trained: what trained the rest of its group; None: nothing of it was trained.
    """
    group, forks = asked.finished_group, asked.carried
    if forks is None:
        return Kept(asked.index, asked.version, group, asked.batch)
    # What is under way is read first: a fork that comes back meanwhile is made again, not lost.
    under_way = forks.under_way
    back = [made for made in forks.back if prefix_of(made) not in under_way]
    group = replace(group, resamples=tuple(back))
    return Kept(asked.index, asked.version, group, asked.batch, under_way, trained)


def _group(asked: QuestionInFlight) -> Group:
    """Return the group with all its resamples."""
    assert asked.carried is not None
    return replace(asked.finished_group, resamples=asked.carried.result.result())
