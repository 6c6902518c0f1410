"""The diagnostics of the paper and Pass@k, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from axpo.evaluation.diagnostics import diagnostics, evaluate_groups, pass_at_k, question_counts
from tests.axpo.evaluation.helpers import A, B, three_groups
from tests.axpo.helpers import TOKENS, direct, encode, group, policy, resample, zooming


def test_rollouts_are_counted_without_their_forks():
    numbers = diagnostics(three_groups(), TOKENS)
    assert numbers["pass1"] == pytest.approx(5 / 12)
    assert numbers["tool_use_rate"] == pytest.approx(4 / 12)
    assert numbers["pass1_given_tool"] == pytest.approx(1 / 4)
    assert numbers["pass1_given_no_tool"] == pytest.approx(4 / 8)
    assert numbers["turns_per_rollout"] == pytest.approx((4 * 2 + 8 * 1) / 12)
    assert numbers["tool_calls_per_rollout"] == pytest.approx(4 / 12)
    assert numbers["call_failure_rate"] == pytest.approx(1 / 4)
    assert numbers["end/answered"] == pytest.approx(11 / 12)
    assert numbers["end/out_of_tokens"] == pytest.approx(1 / 12)
    assert numbers["end/malformed_call"] == 0.0
    assert "end/engine_failure" not in numbers


def test_all_wrong_rates_count_only_questions_that_have_the_subgroup():
    numbers = diagnostics(three_groups(), TOKENS)
    # The third question has no tool-using rollout.
    assert numbers["tool_all_wrong_rate"] == pytest.approx(1 / 2)
    assert numbers["no_tool_all_wrong_rate"] == pytest.approx(1 / 3)
    # Of all questions.
    assert numbers["trigger_rate"] == pytest.approx(1 / 3)


def test_each_of_several_tools_has_its_share_of_the_rollouts():
    def ran(trajectory, *tools):
        return replace(trajectory, stats=replace(trajectory.stats, tools=tools))

    searched = ran(zooming(0, 1.0), "search", "search")
    both = ran(zooming(1, 0.0), "search", "python")
    groups = [group([searched, both, direct(2, 0.0), direct(3, 0.0)])]
    for numbers in (diagnostics(groups, TOKENS), evaluate_groups(groups, TOKENS)):
        assert (numbers["use/search"], numbers["use/python"]) == (2 / 4, 1 / 4)
    alone = [group([searched, *(direct(i, 0.0) for i in range(1, 4))])]
    assert not any(name.startswith("use/") for name in diagnostics(alone, TOKENS))


def test_resamples():
    groups = three_groups()
    second = zooming(1, 0.0)
    groups[1] = group(
        [zooming(0, 0.0), second, direct(2, 0.0), direct(3, 0.0)],
        [resample(second, [(A, 0.0, 40), (B, 0.0, 60)])],
    )
    numbers = diagnostics(groups, TOKENS)
    assert numbers["resampled_prefixes"] == 2
    assert numbers["recovery_rate"] == pytest.approx(1 / 2)
    assert numbers["resample_pass1"] == pytest.approx(1 / 6)
    assert numbers["distinct_calls_per_prefix"] == pytest.approx((2 + 2) / 2)
    assert numbers["fork_cached_share"] == pytest.approx((0.8 * 3 + 0.96 + 0.4 + 0.6) / 6)
    assert numbers["fork_cached_share_min"] == pytest.approx(0.4)


def test_a_continuation_without_a_call_calls_nothing():
    source = zooming(0, 0.0)
    fresh = replace(resample(source, [(A, 0.0, 9), (A, 0.0, 9)]), prefix_tokens=0)
    fresh = replace(fresh, continuations=(fresh.continuations[0], direct(0, 1.0)))
    numbers = diagnostics([group([source, direct(1, 0.0)], [fresh])], TOKENS)
    assert (numbers["distinct_calls_per_prefix"], numbers["recovery_rate"]) == (2, 1)


def test_undefined_rates_are_left_out():
    numbers = diagnostics([group([direct(0, 0.0), direct(1, 0.0)])], TOKENS)
    assert numbers["no_tool_all_wrong_rate"] == 1.0
    assert numbers["trigger_rate"] == 0.0
    assert numbers["policy_tokens_per_rollout"] == 5.0
    assert {"tool_all_wrong_rate", "pass1_given_tool", "call_failure_rate"}.isdisjoint(numbers)
    of_resamples = {"recovery_rate", "resample_pass1", "distinct_calls_per_prefix"}
    assert (of_resamples | {"fork_cached_share"}).isdisjoint(numbers)
    assert diagnostics([], TOKENS) == {}


def test_a_call_written_inside_thinking_is_no_tool_use():
    text = "I could <tool_call> here</think>7<|im_end|>"
    thought = replace(direct(0, 1.0), segments=(policy(text),))
    assert TOKENS.call_open in encode("I could <tool_call> here")
    assert diagnostics([group([thought, direct(1, 0.0)])], TOKENS)["tool_use_rate"] == 0.0


def test_a_rollout_without_reward_is_refused():
    unscored = replace(direct(0, 0.0), reward=None)
    with pytest.raises(ValueError, match="rollout 0 of question q"):
        diagnostics([group([unscored, direct(1, 0.0)])], TOKENS)


@pytest.mark.parametrize(
    ("correct", "n", "k", "expected"),
    [
        (0, 8, 4, 0.0),
        (8, 8, 4, 1.0),
        (2, 8, 1, 0.25),
        (2, 4, 2, 1 - 1 / 6),
        (1, 8, 4, 0.5),
        (5, 8, 4, 1.0),
    ],
)
def test_pass_at_k(correct, n, k, expected):
    assert pass_at_k(correct, n, k) == pytest.approx(expected)


@pytest.mark.parametrize(("correct", "n", "k"), [(1, 3, 4), (5, 4, 1), (-1, 4, 1), (0, 4, 0)])
def test_pass_at_k_refuses_impossible_counts(correct, n, k):
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(correct, n, k)


def test_evaluate_groups():
    numbers = evaluate_groups(three_groups(), TOKENS, k=2)
    assert numbers == {
        "pass1": pytest.approx(5 / 12),
        "pass2": pytest.approx((5 / 6 + 1 / 2 + 5 / 6) / 3),  # 2, 1 and 2 right of 4
        "tool_use": pytest.approx(1 / 3),
        "tool_all_wrong_rate": pytest.approx(1 / 2),
        "pass1_given_tool": pytest.approx(1 / 4),
        "no_tool_all_wrong_rate": pytest.approx(1 / 3),
        "pass1_given_no_tool": pytest.approx(4 / 8),
        "end/out_of_tokens": pytest.approx(1 / 12),
    }
    assert evaluate_groups([], TOKENS) == {}


def test_an_evaluation_calls_the_same_rollouts_wrong_as_training():
    graded = [group([zooming(0, 0.4), zooming(1, 0.0), direct(2, 0.6), direct(3, 0.0)])]
    for numbers in (diagnostics(graded, TOKENS, 0.5), evaluate_groups(graded, TOKENS, 4, 0.5)):
        assert (numbers["tool_all_wrong_rate"], numbers["no_tool_all_wrong_rate"]) == (1.0, 0.0)
    assert evaluate_groups(graded, TOKENS)["tool_all_wrong_rate"] == 0.0


def test_an_evaluations_counts_a_question():
    first, second, third = three_groups()
    third = replace(third, question=replace(third.question, info={"kind": "frame"}))
    assert question_counts([first, third, second], TOKENS) == {
        "": [[4, 2, 2, 0], [4, 1, 2, 1]],
        "frame": [[4, 2, 0, 0]],
    }
    info = {"kind": "frame", "family": "zoom"}
    mixed = replace(third, question=replace(third.question, info=info))
    assert list(question_counts([mixed], TOKENS)) == ["zoom/frame"]
    assert question_counts([], TOKENS) == {}
