"""Choose which prefixes to fork while groups are still coming in.

The paper ranks the candidates of a whole batch, so every fork waits for the slowest rollout of the
batch (`schedule: batch`). This module can decide earlier (`schedule: streaming`): it forks a
candidate as soon as the rank that we expect it to have in the whole batch is within the budget.
Both choose with `select.allocate` (docs/method.md, rule 3). A third schedule (`carry`) chooses like
the paper, and lets the batch be trained meanwhile: its forks run beside the update and the rollouts
of the next batch, and are trained with that batch.

How the rank is estimated. When m of the B questions of a batch are in, a candidate's expected rank
is

    rank = seen + awaited * rate

    seen     candidates of the m questions that are at least as good as this one
    awaited  questions that are still out, without the slowest B // STRAGGLER
    rate     such candidates per question, over the m questions and the last BATCHES batches

A candidate that is not within the budget yet is held, and looked at again when the next question
comes in. Only the best of those held is looked at: the rank of any other is no lower. When all but
the stragglers are in, the rank is the one among the candidates seen. So what is left of the budget
goes where the paper's order puts it, without the stragglers. Only the stragglers' candidates, and
those that were taken too early, can differ from the paper's choice. The budget is never exceeded.
Budget that nobody used goes to the last questions, in the paper's order.

With priced tools (`resampler.budget.target_cost_s`) a candidate uses up `price` units of the
budget instead of 1, and counts for as many in the rank. A price is at most the whole budget. A
candidate that what is left of the budget cannot pay is passed over.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, TypeAlias

from axpo.registry import Registry, Variant
from resampler.history import Entry, PastBatch
from resampler.select import Candidate, Held, allocate

STRAGGLER = 16
"""One question in so many, the last ones to finish, for which no budget is kept. Their forks would
begin when the engines run dry, and the batch would wait for them alone. The tests say how much of
the choice stays the same, `make bench-rollouts` says what it saves."""


class Schedule(Variant):
    """Say when a prefix is forked, and when what comes of it is trained."""

    whole_batch: ClassVar[bool] = False
    """Whether nothing is decided before the whole batch is in."""
    carries: ClassVar[bool] = False
    """Whether forks run beside the update and the next batch, and are trained with that batch."""

    @abstractmethod
    def takes(self, rank: float, prefixes: int) -> bool:
        """Return whether a candidate is forked while questions of its batch are still out.

        Candidates are asked in the order of their ranks, and the first that is not taken ends it:
        if a rank is taken, every lower one must be.

        Args:
            rank: the rank that the candidate is expected to have in the whole batch, from 1.
            prefixes: the budget of the batch.
        """


schedules: Registry[Schedule] = Registry("schedules", Schedule, core="takes")


@schedules.register("batch")
class Batch(Schedule):
    """Choose when the whole batch is there (exactly the paper)."""

    whole_batch = True

    def takes(self, rank: float, prefixes: int) -> bool:
        # Nobody asks: nothing is decided before the whole batch is in.
        return False


@schedules.register("carry")
class Carry(Batch):
    """Choose when the whole batch is there; train the forks with the next batch."""

    carries = True


@schedules.register("streaming")
class Streaming(Schedule):
    """Choose while groups still come in, as soon as the expected rank is within the budget."""

    def takes(self, rank: float, prefixes: int) -> bool:
        """Return whether the expected rank is within the budget."""
        return rank <= prefixes


@dataclass(frozen=True)
class Decision:
    """What one more question of a batch led to. Questions are named by their place in the batch."""

    forks: tuple[Candidate, ...] = ()  # to fork now, of this question or of earlier ones
    settled: tuple[int, ...] = ()  # questions seen for which no further fork will come


@dataclass(frozen=True)
class Terms:
    """What bounds the choice of one batch, fixed when its first question comes in."""

    questions: int
    prefixes: int  # the budget
    prices: Mapping[str, float] = field(default_factory=dict)  # see `Budget.prices`


class Selection:
    """The choice of one batch. `offer` is called once for each of its questions."""

    def __init__(self, schedule: Schedule, terms: Terms, past: Sequence[PastBatch] = ()) -> None:
        self._schedule = schedule
        self._terms = terms
        self._left = float(terms.prefixes)
        # The last batches say how many candidates to expect of the questions that are still out.
        self._asked_before = sum(batch.questions for batch in past)
        self._before = _Counts(chain.from_iterable(batch.entries for batch in past))
        self._seen = 0
        self._entries: list[Entry] = []  # of all candidates seen
        self._counts = _Counts()  # of the same
        self._rewards: list[float] = []
        self._held = Held(self._price)
        self._unsettled: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether all questions of the batch were offered."""
        return self._seen == self._terms.questions

    @property
    def past(self) -> PastBatch:
        """What this batch teaches the next ones."""
        return PastBatch(self._seen, tuple(self._entries), tuple(sorted(self._rewards)))

    def offer(
        self, place: int, found: Sequence[Candidate], rewards: Sequence[float] = ()
    ) -> Decision:
        """Take in one more question of the batch.

        Args:
            place: its place in the batch.
            found: its candidates, as `select.candidates` returns them; none if it did not trigger
                or was lost.
            rewards: those of its rollouts.
        """
        self._seen += 1
        self._rewards += rewards
        self._unsettled.add(place)
        entries = [(c.depth, c.score, self._price(c)) for c in found]
        self._entries += entries
        self._counts.add(entries)
        self._held.add(place, found)
        return Decision(self._take(), self._settle())

    def _take(self) -> tuple[Candidate, ...]:
        if self._schedule.whole_batch and not self.complete:
            return ()

        def may_take(candidate: Candidate) -> bool:
            # What is left when all questions are in goes to whoever is next.
            if self.complete:
                return True
            return self._schedule.takes(self._rank(candidate), self._terms.prefixes)

        chosen = allocate(self._held, self._left, may_take)
        for candidate in chosen:
            self._left -= self._price(candidate)
        return tuple(chosen)

    def _settle(self) -> tuple[int, ...]:
        """Return the questions that need not wait any longer, each once."""
        if self.complete:
            settled = set(self._unsettled)
        elif self._schedule.whole_batch:
            settled = set()
        else:
            settled = self._held.take_without()
        self._unsettled -= settled
        return tuple(sorted(settled))

    def _price(self, candidate: Candidate) -> float:
        price = self._terms.prices.get(candidate.tool, 1.0)
        # The most expensive tool can still be tried once a batch, so its cost is measured again.
        return min(price, max(1, self._terms.prefixes))

    def _rank(self, candidate: Candidate) -> float:
        """Return the rank that a candidate is expected to have in the whole batch."""
        questions = self._terms.questions
        seen = self._counts.up_to(candidate)
        awaited = max(0, questions - questions // STRAGGLER - self._seen)
        as_good = seen + self._before.up_to(candidate)
        return seen + awaited * as_good / (self._seen + self._asked_before)


_Key: TypeAlias = tuple[int, float]
"""Depth and score: what the order of candidates goes by."""


class _Counts:
    """Count the candidates that are at least as good as one, each with its price.

    The keys of each price are in sorted runs, each more than twice as long as the next. A run that
    is added is merged with those that are too short. So adding a key costs a logarithm on average,
    and counting costs a search in each of a logarithm of runs.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._runs: dict[float, list[list[_Key]]] = {}  # by price, of which there are few
        self.add(entries)

    def add(self, entries: Iterable[Entry]) -> None:
        """Count these, too."""
        by_price: dict[float, list[_Key]] = {}
        for depth, score, price in entries:
            by_price.setdefault(price, []).append((depth, score))
        for price, keys in by_price.items():
            runs = self._runs.setdefault(price, [])
            while runs and len(runs[-1]) <= 2 * len(keys):
                keys += runs.pop()
            runs.append(sorted(keys))

    def up_to(self, candidate: Candidate) -> float:
        """Return the prices of the candidates up to this one, summed; itself included."""
        key = (candidate.depth, candidate.score)
        total = 0.0
        for price, runs in self._runs.items():
            total += price * sum(bisect_right(run, key) for run in runs)
        return total
