"""Scores against numbers worked out by hand."""

import numpy as np
import pytest

from resampler.rankings import Confidence, Entropy, EntropyRise, Random, chance, confidence, entropy
from tests.resampler.helpers import calling, found_in, group, turns


def test_confidence_is_the_mean_probability_of_the_call_with_both_tags():
    # Thinking 0.1, opening tag 0.5, two tokens of the call 0.3 and 0.6, closing tag 1.0, end of
    # turn 0.2.
    call = [(5, 0.5), (60, 0.3), (61, 0.6), (6, 1.0)]
    source = turns([[(50, 0.1), (4, 0.1), *call, (2, 0.2)]], 0.0)
    assert confidence(source, (2, 6)) == pytest.approx((0.5 + 0.3 + 0.6 + 1.0) / 4)  # 0.6
    assert Confidence().score(source, (2, 6), draw=0.9) == confidence(source, (2, 6))


def test_confidence_of_a_call_that_is_never_closed_stops_before_the_end_of_turn():
    source = turns([[(4, 0.1), (5, 0.4), (60, 0.2), (2, 0.9)]], 0.0)
    (found,) = found_in(group("q", source))
    assert found.score == pytest.approx(0.3)


def test_entropy_is_the_mean_over_the_same_span():
    source = calling(0.5, entropy=1.25)
    assert entropy(source, (2, 5)) == pytest.approx(1.25)
    assert Entropy().score(source, (2, 5), draw=0.9) == pytest.approx(-1.25)


@pytest.mark.parametrize("ranking", [Entropy(), EntropyRise()])
def test_without_entropies_a_ranking_by_entropy_names_the_rollout(ranking):
    assert ranking.needs_entropies
    with pytest.raises(ValueError, match="rollout 3 of question q has no entropies"):
        ranking.score(calling(0.5, rollout=3), (2, 5), draw=0.0)


def test_entropy_ranks_the_highest_first():
    certain, uncertain = calling(0.5, entropy=0.5), calling(0.5, rollout=1, entropy=2.0)
    first, _ = found_in(group("a", certain, uncertain), Entropy())
    assert first.rollout == 1


def test_chance_is_seeded_and_knows_no_order():
    groups = [
        group(name, *(calling(0.5, rollout=i, question=name) for i in range(4))) for name in "ab"
    ]

    def drawn(question, place):
        found = found_in(question, Random(), seed=7, batch=3, place=place)
        return {candidate.rollout: candidate.score for candidate in found}

    one = [drawn(groups[0], 0), drawn(groups[1], 1)]
    assert one == [drawn(groups[0], 0), drawn(groups[1], 1)]
    assert one == [drawn(groups[0], 1), drawn(groups[1], 0)]  # the groups in another order
    assert one[0] != one[1]
    scores = {chance(seed, batch, "a", 0, 3) for seed in (0, 1) for batch in (0, 1)}
    assert len(scores) == 4
    assert 0.45 < np.mean([chance(0, 0, "q", i, 3) for i in range(2000)]) < 0.55


def test_chance_takes_an_id_that_is_no_unicode():
    assert 0 <= chance(0, 0, "\ud800", 0, 0) < 1
