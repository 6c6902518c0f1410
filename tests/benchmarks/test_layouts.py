"""What the learner's benchmark compares with."""

from benchmarks.bench_layouts import in_order
from benchmarks.timing import medians


def test_rows_in_order_stay_within_the_padded_budget():
    # 10 + 10 padded to 20 with the third: 3 x 20 > 50, so it starts a micro-batch; 60 stands alone
    assert in_order([10, 10, 20, 20, 60, 5], 50) == [[0, 1], [2, 3], [4], [5]]


def test_medians_leave_the_first_turn_out():
    seconds = {"a": iter([100.0, 1.0, 3.0, 2.0]), "b": iter([0.0, 5.0, 5.0, 6.0])}
    assert medians(
        {name: lambda values=values: next(values) for name, values in seconds.items()}, 3
    ) == {"a": 2.0, "b": 5.0}
