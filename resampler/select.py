"""Choose the prefixes to fork: rules 1 to 3 of docs/method.md, as pure functions.

Rule 1 is `triggered`. Rule 2, the prefixes of a question, is `candidates`, with a fork place
(`places.py`) and a ranking (`rankings.py`). Rule 3 is `allocate`, which chooses for every schedule
(`schedules.py`), from the candidates that are `Held`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from resampler.budgets import first_tool
from resampler.places import ForkPlace
from resampler.rankings import Ranking, chance
from rollout_workers.trajectory import Group, SpecialTokens, Trajectory


@dataclass(frozen=True)
class Candidate:
    """A prefix that may be forked."""

    group: int  # place of its question in the batch
    rollout: int  # index of the source in its group
    prefix_tokens: int  # response tokens that its continuations keep
    score: float  # the lowest is forked first
    tool: str = ""  # the one that its source called first
    depth: int = 0  # candidates of its question that come before it


@dataclass(frozen=True)
class Rules:
    """What decides about the candidates of every question of a run."""

    tokens: SpecialTokens
    fork_at: ForkPlace
    ranking: Ranking
    seed: int = 0  # of a ranking by chance


def triggered(
    rewards_N: NDArray[np.float64], subgroup_N: NDArray[np.bool_], failed_up_to: float = 0.0
) -> bool:
    """Return whether the subgroup is not empty and all of it failed (rule 1).

    The rollouts outside the subgroup do not matter.

    Args:
        rewards_N: verified outcomes of the rollouts of a question, shape [N].
        subgroup_N: which of them are in the subgroup, shape [N]. In the paper these are the
            rollouts that call a tool (T).
        failed_up_to: a rollout failed if its reward is not above this.
    """
    rewards = rewards_N[subgroup_N]
    return len(rewards) > 0 and not bool((rewards > failed_up_to).any())


def candidates(
    group: Group, rules: Rules, *, batch: int, place: int, failed_up_to: float = 0.0
) -> list[Candidate]:
    """Return the candidates of a question, the lowest score first; none if it did not trigger.

    Args:
        group: the rollouts of the question, each with a reward.
        rules: at which points rollouts are forked, and in which order.
        batch: number of the batch, for a ranking by chance.
        place: place of the question in the batch.
        failed_up_to: a rollout failed if its reward is not above this.

    Raises:
        ValueError: a rollout has no reward, or the fork place gave a point that cannot be forked.
    """
    subgroup = [rules.fork_at.subgroup(rollout, rules.tokens) for rollout in group.rollouts]
    # Some places fork whatever the outcomes.
    if rules.fork_at.needs_trigger:
        subgroup_N = np.array(subgroup, dtype=np.bool_)
        if not triggered(group.rewards, subgroup_N, failed_up_to):
            return []
    found: list[Candidate] = []
    for rollout, in_subgroup in zip(group.rollouts, subgroup, strict=True):
        if in_subgroup:
            found += _candidates_of(rollout, rules, batch, place)
    return in_depth(found)


def in_depth(found: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates of one question, the lowest score first, each with its depth.

    Ties go to the earlier rollout.
    """
    ordered = sorted(found, key=lambda candidate: (candidate.score, candidate.rollout))
    return [replace(candidate, depth=depth) for depth, candidate in enumerate(ordered)]


def _one_unit(candidate: Candidate) -> float:
    return 1.0


def _at_once(candidate: Candidate) -> bool:
    return True


_Order: TypeAlias = tuple[int, float, int, int]


class Held:
    """Hold the candidates that may still be forked, in the order of rule 3.

    Adding or taking one costs a logarithm of how many there are: in a large batch every question
    that comes in asks for the first of tens of thousands.
    """

    def __init__(self, price: Callable[[Candidate], float] = _one_unit) -> None:
        """Hold nothing yet; `price` is how many units of the budget a candidate uses up."""
        self.price = price
        # One heap for each price, of which there are as many as tools. So all that the budget
        # cannot pay any more go at once.
        self._heaps: dict[float, list[tuple[_Order, int, Candidate]]] = {}
        self._serial = itertools.count()  # candidates themselves have no order
        self._candidates: Counter[int] = Counter()  # held, by their questions
        self._without: set[int] = set()

    def add(self, place: int, found: Sequence[Candidate]) -> None:
        """Take in the candidates of the question at a place of the batch; each place once."""
        self._candidates[place] = len(found)
        if not found:
            self._without.add(place)
        for candidate in found:
            heap = self._heaps.setdefault(self.price(candidate), [])
            heappush(heap, (_breadth_first(candidate), next(self._serial), candidate))

    def first(self, budget: float) -> Candidate | None:
        """Return the first candidate; let go of those that `budget` cannot pay.

        What is left of a budget only falls: nobody will pay for them later.
        """
        for price in [price for price in self._heaps if price > budget]:
            for *_, candidate in self._heaps.pop(price):
                self._remove(candidate)
        heads = [heap[0] for heap in self._heaps.values() if heap]
        return min(heads)[-1] if heads else None

    def take(self, candidate: Candidate) -> None:
        """Let go of the first candidate: it is forked."""
        heappop(self._heaps[self.price(candidate)])
        self._remove(candidate)

    def take_without(self) -> set[int]:
        """Return the questions without candidates, each in one call only."""
        taken, self._without = self._without, set()
        return taken

    def _remove(self, candidate: Candidate) -> None:
        self._candidates[candidate.group] -= 1
        if self._candidates[candidate.group] == 0:
            self._without.add(candidate.group)


def allocate(
    held: Held, budget: float, may_take: Callable[[Candidate], bool] = _at_once
) -> list[Candidate]:
    """Choose the candidates to fork: breadth first, within the budget (rule 3).

    Every question gives its best candidate before any question gives its second one, and so on.
    Among candidates of one depth the lowest score goes first; for the second and further ones this
    is our reading of the paper. Ties go to the earlier group, then to the earlier rollout.

    Args:
        held: candidates of any number of questions, with their depths. It keeps those that may be
            chosen later.
        budget: units that the choice may use up. A candidate is passed over if what is left cannot
            pay it.
        may_take: whether a candidate may be taken now. If it may not, those behind it wait too.

    Returns:
        The chosen candidates, in that order.
    """
    chosen: list[Candidate] = []
    left = budget
    while (candidate := held.first(left)) and may_take(candidate):
        held.take(candidate)
        chosen.append(candidate)
        left -= held.price(candidate)
    return chosen


def _breadth_first(candidate: Candidate) -> _Order:
    return candidate.depth, candidate.score, candidate.group, candidate.rollout


def _candidates_of(
    rollout: Trajectory, rules: Rules, batch: int, place: int
) -> Iterator[Candidate]:
    """Yield the candidates of one rollout, in the order of their fork points."""
    tool = first_tool(rollout)
    for prefix_tokens, span in rules.fork_at.points(rollout, rules.tokens):
        _check_point(rollout, prefix_tokens, rules)
        # Drawn whatever the ranking is: a draw depends on the run and the point, on nothing else.
        draw = chance(rules.seed, batch, rollout.question_id, rollout.rollout, prefix_tokens)
        score = rules.ranking.score(rollout, span, draw)
        if rules.fork_at.keeps(score):
            yield Candidate(place, rollout.rollout, prefix_tokens, score, tool)


def _check_point(rollout: Trajectory, prefix_tokens: int, rules: Rules) -> None:
    length = len(rollout.response_ids)
    # A prefix may be the whole rollout, if the rollout broke off inside a call. It must not be a
    # rollout that came to its end.
    complete = prefix_tokens == length > 0
    finished = complete and rollout.response_ids[-1] == rules.tokens.im_end
    if not 0 <= prefix_tokens <= length or finished:
        raise ValueError(
            f"resampler.fork_at={rules.fork_at.name!r} gave a prefix of {prefix_tokens} tokens for "
            f"rollout {rollout.rollout} of question {rollout.question_id}, which has {length} "
            "tokens; expected a prefix that lies in the rollout and can be continued"
        )
