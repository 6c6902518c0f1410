"""When prefixes are chosen: for a whole batch at once, or while its groups still come in. Pure: groups' candidates in, choices out.

The batch rule (docs/method.md, rule 3, `select.allocate`) takes the P candidates of lowest *key* of the B questions, a key being
(place among its question's candidates, score). The streaming rule sees the questions one by one, in order of completion. It takes a
candidate of key x as soon as the rank that x is expected to have in the whole batch is at most P:

    rank(x) = seen(x) + max(0, B - s - m) * rate(x)

with seen(x) the candidates of key <= x of the m questions seen, rate(x) their number a question, over those m and the last `HISTORY`
batches, and s = floor(B / STRAGGLER) stragglers. Others are held, and looked at again with every further question. When all but the
stragglers are there the rank is that among those seen, so what is left of the budget goes where the batch rule would put it without
them; only stragglers' candidates, and what was taken too early, can differ. A straggler still gets what nobody before it had a use for.
P is never exceeded. Where tools are dear, a candidate counts in all of this for as many as its price says (`select.prices`), P at most,
and one that what is left of P cannot pay is passed over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Literal, TypeAlias

from resampler.select import Candidate

HISTORY = 4
"""Batches remembered. More is smoother, but the policy's confidence moves."""

STRAGGLER = 16
"""One question in so many, the last to finish, for which no budget is kept: its forks would begin when the engines run dry, and the batch
would wait for them alone. The tests say how much of the choice stays the same, `make bench-rollouts` what it saves."""

Key: TypeAlias = tuple[int, float]
Entry: TypeAlias = tuple[int, float, float]
"""A key and a price."""


@dataclass(frozen=True)
class Past:
    """What a finished batch taught."""

    questions: int
    entries: tuple[Entry, ...] = ()  # of all its candidates, in the order of questions
    rewards: tuple[float, ...] = ()  # of all its scored rollouts, forks excluded, sorted


@dataclass(frozen=True)
class Decision:
    """What one more question of a batch led to. Indices are places in the batch."""

    forks: tuple[
        Candidate, ...
    ] = ()  # prefixes to resample now, of this question or of earlier ones
    settled: tuple[int, ...] = ()  # questions seen for which no further fork will come


class Selection:
    """The choice of one batch of `questions`, at most `prefixes` of them; `offer` once a question. `prices`: see `select.prices`."""

    def __init__(
        self,
        questions: int,
        prefixes: int,
        schedule: Literal["batch", "streaming"],
        past: Sequence[Past] = (),
        prices: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._questions, self._prefixes, self._left = questions, prefixes, float(prefixes)
        self._schedule = schedule
        self._prices = prices
        self._asked_before = sum(batch.questions for batch in past)
        self._before = _Counts([entry for batch in past for entry in batch.entries])
        self._seen = 0
        self._entries: list[Entry] = []  # of all candidates seen
        self._rewards: list[float] = []
        self._held: list[tuple[Key, Candidate]] = []
        self._unsettled: set[int] = set()

    @property
    def past(self) -> Past:
        """What this batch teaches the next ones."""
        return Past(self._seen, tuple(self._entries), tuple(sorted(self._rewards)))

    @property
    def complete(self) -> bool:
        return self._seen == self._questions

    def offer(
        self, index: int, found: Sequence[Candidate], rewards: Sequence[float] = ()
    ) -> Decision:
        """Question `index` of the batch is there; `found` are its candidates (none: not triggered, or lost), `rewards` its rollouts'."""
        self._seen += 1
        self._rewards += rewards
        self._unsettled.add(index)
        ranked = [
            ((place, c.score), c)
            for place, c in enumerate(sorted(found, key=lambda c: (c.score, c.rollout)))
        ]
        self._entries += [(*key, self._price(c)) for key, c in ranked]
        self._held = sorted(
            [*self._held, *ranked], key=lambda held: (held[0], held[1].group, held[1].rollout)
        )
        forks = self._take()
        waiting = {
            candidate.group for _, candidate in self._held if self._price(candidate) <= self._left
        }
        if self._schedule == "batch":
            waiting = self._unsettled
        settled = sorted(self._unsettled) if self.complete else sorted(self._unsettled - waiting)
        self._unsettled -= set(settled)
        return Decision(tuple(forks), tuple(settled))

    def _take(self) -> list[Candidate]:
        if self._schedule == "batch" and not self.complete:
            return []
        taken, held, counts = [], [], _Counts(self._entries)
        for key, candidate in self._held:
            price = self._price(candidate)
            if price <= self._left and (self.complete or self._rank(key, counts) <= self._prefixes):
                taken.append(candidate)
                self._left -= price
            else:
                held.append((key, candidate))
        self._held = held
        return taken

    def _price(self, candidate: Candidate) -> float:
        return min(self._prices.get(candidate.tool, 1.0), max(1, self._prefixes))

    def _rank(self, key: Key, counts: _Counts) -> float:
        seen = counts.up_to(key)
        awaited = max(0, self._questions - self._questions // STRAGGLER - self._seen)
        return seen + awaited * (seen + self._before.up_to(key)) / (self._seen + self._asked_before)


class Selections:
    """The selections of the batches under way, by step, and what the finished ones taught."""

    def __init__(self, schedule: Literal["batch", "streaming"], past: Sequence[Past] = ()) -> None:
        self._schedule = schedule
        self._open: dict[int, Selection] = {}
        self._past: deque[Past] = deque(past, maxlen=HISTORY)

    @property
    def past(self) -> tuple[Past, ...]:
        """The last finished batches, oldest first."""
        return tuple(self._past)

    def offer(
        self,
        step: int,
        index: int,
        found: Sequence[Candidate],
        questions: int,
        prefixes: int,
        prices: Mapping[str, float] = MappingProxyType({}),
        rewards: Sequence[float] = (),
    ) -> Decision:
        """See `Selection.offer`; the first offer of a step opens its batch, with the budget and the prices of that moment."""
        if step not in self._open:
            self._open[step] = Selection(questions, prefixes, self._schedule, self.past, prices)
        selection = self._open[step]
        decision = selection.offer(index, found, rewards)
        if selection.complete:
            self._past.append(self._open.pop(step).past)
        return decision


class _Counts:
    """What the candidates up to a key count for together; logarithmic, as every held candidate asks with every question."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        ordered = sorted(entries)
        self._keys = [(place, score) for place, score, _ in ordered]
        self._totals = [0.0, *accumulate(price for *_, price in ordered)]

    def up_to(self, key: Key) -> float:
        return self._totals[bisect_right(self._keys, key)]
