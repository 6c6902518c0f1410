"""Which rollouts failed, against numbers worked out by hand."""

import pytest

from resampler.triggers import AllWrong, Quantile


@pytest.mark.parametrize("rewards", [[], [0.0, 1.0], [0.2, 0.9]])
def test_the_papers_trigger_does_not_look_back(rewards):
    assert AllWrong().failed_up_to(rewards) == 0.0
    assert AllWrong(success_above=0.5).failed_up_to(rewards) == 0.5


@pytest.mark.parametrize(
    ("rewards", "quantile", "expected"),
    [
        ([0, 0, 0, 1], 0.5, 0.0),
        ([0, 1, 1, 1], 0.5, 0.0),  # the median is 1, but the best never failed
        ([0, 1], 0.01, 0.0),
        ([0.1, 0.2, 0.3, 0.4, 0.9], 0.5, 0.3),
        ([0.1, 0.2, 0.3, 0.4], 0.5, 0.2),  # between 0.2 and 0.3: the lower
        ([0.1, 0.2, 0.9, 0.9], 0.9, 0.2),
        ([0.7, 0.7], 0.5, 9.0),
        ([], 0.5, 9.0),
    ],
)
def test_what_failed_by_quantile(rewards, quantile, expected):
    trigger = Quantile(quantile=quantile, success_above=9.0)
    assert trigger.failed_up_to(rewards) == expected
