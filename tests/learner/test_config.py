"""Settings of the learner that are refused, and the learning rate that follows from them."""

import pytest

from learner.config import LearnerConfig
from learner.schedule import lr_factor


def test_the_learning_rate_warms_up_then_stays_or_follows_the_cosine():
    constant = LearnerConfig(warmup_steps=4)
    assert [lr_factor(s, constant) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = LearnerConfig(warmup_steps=2, schedule="cosine", total_steps=6)
    assert [lr_factor(s, cosine) for s in (0, 1, 2, 4, 6, 7)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    )


def test_a_cosine_needs_steps_after_the_warm_up():
    with pytest.raises(ValueError, match=r"learner\.total_steps=0: the cosine schedule needs more"):
        LearnerConfig(schedule="cosine")


@pytest.mark.parametrize("objective", ["dr_grpo", "rloo"])
def test_an_objective_that_divides_by_a_constant_needs_it(objective):
    with pytest.raises(ValueError, match="expected the longest response in tokens"):
        LearnerConfig(objective=objective)


@pytest.mark.parametrize("window", [(0, 3), (5, 4)])
def test_a_window_of_the_profiler_begins_at_step_1_and_does_not_end_before_it_begins(window):
    with pytest.raises(ValueError, match=r"learner\.profile_steps=\["):
        LearnerConfig(profile_steps=window)
    assert LearnerConfig(profile_steps=(1, 1)).profile_steps == (1, 1)
