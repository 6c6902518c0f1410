"""Choose the prefixes to fork: rules 1 to 3 of docs/method.md, as pure functions.

Rule 1 is `triggered`. Rule 2, the prefixes of a question, is `candidates`, with a fork place
(`places.py`) and a ranking (`rankings.py`). Rule 3 is `allocate`, which every schedule calls
(`schedules.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

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
    """What decides about the candidates of a question, the same over a run."""

    tokens: SpecialTokens
    fork_at: ForkPlace
    ranking: Ranking
    seed: int = 0


def triggered(
    rewards_N: NDArray[np.float64], subgroup_N: NDArray[np.bool_], failed_up_to: float = 0.0
) -> bool:
    """Return whether the subgroup is not empty and all of it failed (rule 1).

    The rollouts outside the subgroup do not matter.

    Args:
        rewards_N: verified outcomes of a question's rollouts, shape [N].
        subgroup_N: which of them are in the subgroup, shape [N]: in the paper those that call a
            tool (T).
        failed_up_to: a rollout failed if its reward is not above this.
    """
    rewards = rewards_N[subgroup_N]
    return len(rewards) > 0 and not bool((rewards > failed_up_to).any())


def candidates(
    group: Group, rules: Rules, *, batch: int, place: int, failed_up_to: float = 0.0
) -> list[Candidate]:
    """Return the candidates of one question, the lowest score first; none if it did not trigger.

    Args:
        group: the question's rollouts, each with a reward.
        rules: where rollouts are forked, and in which order.
        batch: number of the batch, from which a random ranking draws.
        place: place of the question in the batch.
        failed_up_to: see `triggered`.

    Raises:
        ValueError: a rollout has no reward, or the fork place gave a point that cannot be forked.
    """
    fork_at, tokens = rules.fork_at, rules.tokens
    in_subgroup = [fork_at.subgroup(rollout, tokens) for rollout in group.rollouts]
    if fork_at.needs_trigger:
        subgroup = np.array(in_subgroup, dtype=np.bool_)
        if not triggered(group.rewards, subgroup, failed_up_to):
            return []
    found = []
    for rollout, chosen in zip(group.rollouts, in_subgroup, strict=True):
        for prefix_tokens, span in fork_at.points(rollout, tokens) if chosen else []:
            _check_point(rollout, prefix_tokens, rules)
            draw = chance(rules.seed, batch, rollout.question_id, rollout.rollout, prefix_tokens)
            score = rules.ranking.score(rollout, span, draw)
            if fork_at.keeps(score):
                tool = first_tool(rollout)
                found.append(Candidate(place, rollout.rollout, prefix_tokens, score, tool))
    return in_depth(found)


def in_depth(found: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates of one question, the lowest score first, each with its depth.

    Ties go to the earlier rollout.
    """
    ordered = sorted(found, key=lambda candidate: (candidate.score, candidate.rollout))
    return [replace(candidate, depth=depth) for depth, candidate in enumerate(ordered)]


def turn(candidate: Candidate) -> tuple[int, float, int, int]:
    """Return the key that orders the candidates of a batch breadth first (rule 3)."""
    return candidate.depth, candidate.score, candidate.group, candidate.rollout


def one_unit(candidate: Candidate) -> float:
    """Return 1: without prices every prefix uses up one unit of the budget."""
    return 1.0


def at_once(candidate: Candidate) -> bool:
    """Return True: nothing holds a candidate back."""
    return True


def allocate(
    found: Iterable[Candidate],
    budget: float,
    *,
    price: Callable[[Candidate], float] = one_unit,
    may_take: Callable[[Candidate], bool] = at_once,
) -> list[Candidate]:
    """Choose the candidates to fork: breadth first, within the budget (rule 3).

    Every question gives its best candidate before any question gives its second, and so on. Among
    candidates of one depth the lower score goes first (for the second ones and further: our
    reading). Ties go to the earlier group, then to the earlier rollout.

    Args:
        found: the candidates of any number of questions.
        budget: units that may be used up together.
        price: units that a candidate uses up; one that what is left cannot pay is passed over.
        may_take: whether a candidate may be taken now.
    """
    chosen, left = [], budget
    for candidate in sorted(found, key=turn):
        units = price(candidate)
        if units <= left and may_take(candidate):
            chosen.append(candidate)
            left -= units
    return chosen


def _check_point(rollout: Trajectory, prefix_tokens: int, rules: Rules) -> None:
    length = len(rollout.response_ids)
    ended = prefix_tokens == length and rollout.response_ids[-1:].tolist() == [rules.tokens.im_end]
    if not 0 <= prefix_tokens <= length or ended:
        raise ValueError(
            f"resampler.fork_at={rules.fork_at.name!r}: a prefix of {prefix_tokens} tokens of "
            f"rollout {rollout.rollout} of question {rollout.question_id}, which has {length}: "
            "expected one that lies within the rollout and leaves something to continue"
        )
