"""What the learner's benchmark compares with."""

from __future__ import annotations

from benchmarks.bench_layouts import in_order
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
