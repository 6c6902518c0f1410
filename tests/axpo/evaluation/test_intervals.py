"""Pass@k and intervals against numbers by hand and by independent computations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from axpo.evaluation.intervals import Ratio, draws, estimate, mcnemar, mean, mean_of
from axpo.evaluation.quoted import quoted
from axpo.evaluation.summarize import Counted, pass_ratio


def names(count):
    return [str(number) for number in range(count)]


def counted(rights):
    """Return a question for each list of verdicts."""
    return [
        Counted(str(number), str(number), {}, [{"right": right} for right in verdicts])
        for number, verdicts in enumerate(rights)
    ]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(k):
    rng = np.random.default_rng(3)
    verdicts = [list(map(bool, rng.integers(0, 2, 6))) for _ in range(25)]
    # Independent: every choice of k samples, by enumeration.
    chances = [
        np.mean([any(chosen) for chosen in itertools.combinations(one, k)]) for one in verdicts
    ]
    assert pass_ratio(counted(verdicts), k).value() == pytest.approx(np.mean(chances))


def test_pass_at_k_by_hand():
    verdicts = [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # 1 - C(2, 2) / C(4, 2) = 5/6; 1 - C(3, 2) / C(4, 2) = 1/2; 0.
    assert pass_ratio(counted(verdicts), 2).value() == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert pass_ratio(counted(verdicts), 1).value() == pytest.approx(3 / 12)
    assert pass_ratio(counted(verdicts), 4).value() == pytest.approx(2 / 3)


def test_the_interval_of_a_mean_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(5).beta(2, 1, 120)
    found = estimate(mean(list(values), names(120)))
    other = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(other.low, abs=0.003)
    assert found.high == pytest.approx(other.high, abs=0.003)


def test_the_interval_of_two_questions_is_known():
    # Of 0 and 1, a draw has the mean 0 or 1 with probability 1/4 each, and 1/2 else.
    found = estimate(mean([0.0, 1.0], names(2)))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    shares = [float((draws(mean([0.0, 1.0], names(2))) == value).mean()) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    alone = estimate(mean([0.3], names(1)))
    assert (alone.value, alone.low, alone.high) == (0.3, 0.3, 0.3)


def test_rotations_of_one_question_are_drawn_together():
    # Four equal rotations tell no more than one question.
    values = list(np.random.default_rng(7).integers(0, 2, 50).astype(float))
    one = estimate(mean(values, names(50)))
    four = estimate(
        mean([v for v in values for _ in range(4)], [n for n in names(50) for _ in "abcd"])
    )
    assert four == one
    apart = estimate(mean([v for v in values for _ in range(4)], names(200)))
    assert apart.high - apart.low < 0.6 * (one.high - one.low)


def test_a_conditional_rate_is_a_ratio_of_sums():
    # 1 of 1 samples with a tool, 0 of 3, none.
    ratio = Ratio([1.0, 0.0, 0.0], [1.0, 3.0, 0.0], names(3))
    found = estimate(ratio)
    assert found.value == pytest.approx(1 / 4)
    # Draws without any such sample say nothing; (1/3)^3 of the draws are of the third alone.
    assert np.isnan(draws(ratio)).mean() == pytest.approx(1 / 27, abs=0.01)
    assert (found.low, found.high) == (0.0, 1.0)
    assert estimate(Ratio([0.0], [0.0], ["a"])) is None
    assert estimate(Ratio([], [], [])) is None


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(200):
        found = estimate(mean(list(rng.binomial(4, 0.6, 100) / 4), names(100)))
        covered += found.low <= 0.6 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_average_of_benchmarks_weighs_them_alike():
    first, second = mean([1.0, 0.0], names(2)), mean([1.0] * 50, names(50))
    found = mean_of([first, second])
    assert found.value == pytest.approx((0.5 + 1.0) / 2)
    assert (found.low, found.high) == (0.5, 1.0)
    assert mean_of([first, mean([], [])]) is None
    assert mean_of([]) is None


def test_the_exact_test_of_mcnemar():
    for better, worse in ((8, 2), (2, 8), (5, 5), (1, 0), (0, 12), (30, 17)):
        expected = stats.binomtest(better, better + worse, 0.5).pvalue
        assert mcnemar(better, worse) == pytest.approx(expected)
    assert mcnemar(0, 0) == 1.0
    # By hand: 2 * (1 + 10 + 45) / 1024.
    assert mcnemar(8, 2) == pytest.approx(112 / 1024)


def test_the_papers_numbers_are_quoted_as_shares():
    assert quoted("vstar")["8B SFT+AXPO"] == {"pass1": 0.878, "pass4": 0.953}
    assert quoted("mmsearch")["2B Base"] == {"pass4": 0.463}
    assert quoted("hrbench-8k")["32B Base"] == {"pass1": 0.789, "pass4": 0.9}
    assert quoted("mine") == {}
