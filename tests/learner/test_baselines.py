"""Baselines against numbers worked out by hand, and baselines of a user's own."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from learner.baselines import EPS, baselines
from learner.config import LearnerConfig
from learner.credit import credit
from tests.learner.helpers import DIRECT, group
from tests.tokens import TOKENS

# Rewards 1 0 0 0: mean 1/4, population std sqrt(3)/4.
ONE_OF_FOUR = np.array([1.0, 0.0, 0.0, 0.0])
STD = np.sqrt(3) / 4


@pytest.mark.parametrize(
    ("baseline", "right", "wrong"),
    [
        ("group", 0.75 / (STD + EPS), -0.25 / (STD + EPS)),
        ("centered", 0.75, -0.25),
        ("leave_one_out", 1.0, -1 / 3),
    ],
)
def test_one_right_of_four(baseline, right, wrong):
    advantages = baselines.parse(baseline).advantages(ONE_OF_FOUR)
    assert advantages.tolist() == pytest.approx([right, wrong, wrong, wrong])


@pytest.mark.parametrize("baseline", ["group", "centered", "leave_one_out"])
def test_equal_rewards_have_no_advantage(baseline):
    assert baselines.parse(baseline).advantages(np.full(5, 0.7)).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("own_baselines:median", [1.0, 0.0, 0.0, 0.0]),
        ({"name": "own_baselines:Scaled", "factor": 2.0}, [1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_a_baseline_of_your_own_overrides_the_objectives(own_files, own, expected):
    config = LearnerConfig(objective="gspo", credit={"baseline": own})
    items = credit([group([(DIRECT, reward) for reward in ONE_OF_FOUR])], TOKENS, config)
    assert [item.advantages[0] for item in items] == pytest.approx(expected)
    assert LearnerConfig.model_validate(config.model_dump()) == config
    script = (
        "import pickle, sys, numpy as np; config = pickle.load(sys.stdin.buffer); "
        "print(config.credit.baseline.advantages(np.array([1.0, 0, 0, 0])).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(config),
        capture_output=True,
        cwd=own_files,
        check=True,
    )
    assert done.stdout.decode().strip() == str(expected)


EXPECTED = "expected a function of (rewards) or a subclass of learner.baselines.Baseline"


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("grup", "'grup': expected one of group, centered, leave_one_out, or package.module:name"),
        ("nowhere:mean", "cannot import nowhere: ModuleNotFoundError"),
        ("own_baselines:missing", "own_baselines has no missing"),
        ("own_baselines:none", EXPECTED),
        ("own_baselines:Empty", "has no advantages; " + EXPECTED),
        ({"name": "own_baselines:Scaled", "factor": "much"}, "factor='much': Input should be"),
        ({"name": "group", "eps": 1}, "unknown option 'eps'"),
    ],
)
def test_a_wrong_baseline_is_one_line(own_files, baseline, message):
    with pytest.raises(ValueError, match="baselines") as caught:
        baselines.parse(baseline)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
