"""What a step's rollouts cost, and what a tool bonus adds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from axpo.training.metrics import rollout_metrics, shaping_metrics
from rollout_workers.trajectory import RolloutStats
from tests.axpo.evaluation.helpers import three_groups
from tests.axpo.helpers import TOKENS, direct, group, resample, zooming


def test_a_tool_bonus_is_logged_beside_the_verified_outcomes():
    groups = three_groups()  # 5 of 12 right, 4 of 12 use the tool
    numbers = shaping_metrics(groups, TOKENS, -0.3)
    assert numbers == {
        "reward/tool_bonus": pytest.approx(-0.1),
        "reward/shaped": pytest.approx(5 / 12 - 0.1),
    }
    assert shaping_metrics(groups, TOKENS, 0.0) == {}


def test_what_a_steps_generation_cost():
    waited = RolloutStats(
        seconds=2.0, tool_seconds=0.5, later_prompt_tokens=80, later_cached_tokens=64
    )
    source = replace(zooming(1, 0.0), stats=waited)
    first = group(
        [replace(direct(0, 1.0), stats=RolloutStats(seconds=1.0)), source],
        [resample(source, [((5, 5, 9, 9), 1.0, 9)])],
    )
    other = zooming(0, 0.0, question="r")
    second = group([other], [resample(other, [((5, 5, 9, 9), 0.0, 9)])], "r")
    numbers = rollout_metrics([first, second], [first, second], seconds=10.0)
    continuations = [made.resamples[0].continuations[0] for made in (first, second)]
    forks = sum(continuation.policy_tokens for continuation in continuations)
    rollouts = [*first.rollouts, *second.rollouts]
    everyone = sum(rollout.policy_tokens for rollout in rollouts) + forks
    assert numbers == {
        "generated_tokens": everyone,
        "tokens_per_second": everyone / 10,
        "fork_tokens": forks,
        "recovered_groups": 1,
        "tokens_per_recovered_group": forks,
        "later_turns_cached_share": 0.8,
        "tool_wait_share": pytest.approx(0.5 / 3),
        "rollout_seconds_mean": pytest.approx(3 / 5),
        "rollout_seconds_max": 2.0,
    }
