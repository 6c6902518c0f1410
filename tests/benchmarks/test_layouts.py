"""What the learner's benchmark compares with."""

from __future__ import annotations

import numpy as np

from benchmarks.bench_layouts import in_order
from benchmarks.bench_lengths import MEDIAN, spread_lengths, texts
from benchmarks.timing import interleaved, medians


def test_rows_in_order_stay_within_the_padded_budget():
    # 10 + 10 padded to 20 with the third: 3 x 20 > 50, so it starts a micro-batch; 60 stands alone.
    assert in_order([10, 10, 20, 20, 60, 5], 50) == [[0, 1], [2, 3], [4], [5]]


def test_medians_leave_the_first_turn_out():
    of_a, of_b = iter([100.0, 1.0, 3.0, 2.0]), iter([0.0, 5.0, 5.0, 6.0])
    runs = {"a": of_a.__next__, "b": of_b.__next__}
    assert medians(runs, 3) == {"a": 2.0, "b": 5.0}


def test_runs_take_turns_in_going_first():
    order: list[str] = []
    seconds = interleaved(3, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(of_run) for of_run in seconds.values()] == [3, 3]


def test_texts_have_the_lengths_asked_for_and_share_their_prompt_alone():
    long, short = texts([30, 20], shared=10)
    assert [len(item.trajectory.response_ids) for item in (long, short)] == [20, 10]
    assert long.trajectory.prompt_ids.tolist() == short.trajectory.prompt_ids.tolist()
    assert long.trajectory.response_ids[0] != short.trajectory.response_ids[0]


def test_lengths_are_spread_as_log_normal_ones_of_sigma_one():
    logs = np.log(spread_lengths())
    # 48 draws, cut at 2,048: mean and deviation of the logarithms within two standard errors.
    assert abs(logs.mean() - np.log(MEDIAN)) < 2 / 48**0.5
    assert abs(logs.std() - 1.0) < 2 * 1.0 / (2 * 48) ** 0.5
