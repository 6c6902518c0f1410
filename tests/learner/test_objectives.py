"""Objectives against numbers worked out by hand, and objectives of a user's own."""

import math
import pickle
import subprocess
import sys

import pytest
import torch

from learner.config import LearnerConfig
from learner.loss import TokenLoss, TrainedTokens, policy_loss
from learner.objectives import Clip, Objective, item_means, item_sums, objectives

LN2 = math.log(2)
BUILTIN = [
    "clip",
    {"name": "dr_grpo", "loss_length": 4},
    "dapo",
    {"name": "rloo", "loss_length": 4},
    "gspo",
    "cispo",
]
RLOO = BUILTIN[3]


def loss(
    objective="clip",
    logprobs=(0.0,),
    old=(0.0,),
    advantages=(1.0,),
    weights=(1.0,),
    items=None,
) -> tuple[TokenLoss, list[float]]:
    """Return the loss of tokens and its gradient by each log-probability.

    Without `items` each token is an item of its own.
    """
    x = torch.tensor(logprobs, requires_grad=True)
    items = range(len(logprobs)) if items is None else items
    tokens = TrainedTokens(
        logprobs=x,
        old=torch.tensor(old),
        advantages=torch.tensor(advantages),
        weights=torch.tensor(weights),
        items=torch.tensor(list(items), dtype=torch.long),
        correction=torch.ones(len(logprobs)),
    )
    out = policy_loss(tokens, objectives.parse(objective), kl_beta=0.0)
    out.loss.backward()
    return out, x.grad.tolist()


def test_the_clipped_surrogate_is_clipped_on_the_side_that_would_gain():
    ratio = torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 2.0])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    # A > 0: min(rho, clip) = 0.5, 1, 1.4; A < 0: -max(rho, clip) = -0.8, -1, -2
    assert Clip().surrogate(ratio.log(), ratio, advantages).tolist() == pytest.approx(
        [0.5, 1.0, 1.4, -0.8, -1.0, -2.0]
    )


@pytest.mark.parametrize("objective", BUILTIN)
def test_on_policy_every_objective_has_the_policy_gradient(objective):
    # ratio 1: d(loss)/d(logprob) = -w A, whatever the surrogate. Item 0 has two tokens of one
    # advantage.
    _, grad = loss(
        objective,
        (-1.0, -2.0, -3.0),
        (-1.0, -2.0, -3.0),
        (2.0, 2.0, -1.0),
        (0.25, 0.25, 0.5),
        (0, 0, 1),
    )
    assert grad == pytest.approx([-0.5, -0.5, 0.5])


@pytest.mark.parametrize("objective", BUILTIN)
def test_no_tokens_are_no_loss_and_still_have_a_gradient(objective):
    out, grad = loss(objective, (), (), (), ())
    assert out.loss.item() == 0
    assert grad == []


def test_gspo_clips_whole_trajectories():
    # Item 0: log ratios ln 2 and 0, geometric mean sqrt(2), clipped to 1.4: no gradient.
    # Item 1: log ratio -ln 2 at A = 1: rho 1/2.
    out, grad = loss(
        "gspo", (LN2, 0.0, -LN2), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 1.0), (0, 0, 1)
    )
    assert out.ratio.tolist() == pytest.approx([math.sqrt(2), math.sqrt(2), 0.5])
    assert out.loss.item() == pytest.approx(-(1.4 + 0.5))
    assert grad == pytest.approx([0.0, 0.0, -0.5])
    # Within the bounds the gradient of the mean reaches both tokens: -w A s each, 1/2 * 2^(1/4).
    _, grad = loss("gspo", (LN2 / 2, 0.0), (0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0, 0))
    assert grad == pytest.approx([-0.5 * 2**0.25] * 2)


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    # ratio 2, bounded to 1.4: gradient -w 1.4 A; ratio 1/2 at A = -1: gradient w 0.5
    out, grad = loss("cispo", (LN2, -LN2), (0.0, 0.0), (1.0, -1.0), (1.0, 1.0))
    assert grad == pytest.approx([-1.4, 0.5])
    assert out.clipped.tolist() == [1, 0]


def test_rloo_is_not_clipped():
    out, grad = loss(RLOO, (LN2,), (0.0,), (1.0,), (1.0,))
    assert grad == pytest.approx([-2.0])
    assert out.clipped.tolist() == [0]


@pytest.mark.parametrize(
    ("objective", "divisor", "baseline"),
    [
        ("clip", None, "group"),
        ({"name": "dr_grpo", "loss_length": 4}, 4.0, "centered"),
        ("dapo", 3.5, "group"),  # the mean of 2, 3, 3 and 6 tokens
        (RLOO, 4.0, "leave_one_out"),
        ("gspo", None, "group"),
        ("cispo", 3.5, "group"),
    ],
)
def test_an_objective_says_its_divisor_and_its_baseline(objective, divisor, baseline):
    parsed = objectives.parse(objective)
    assert parsed.divisor([2, 3, 3, 6]) == divisor
    assert parsed.baseline.name == baseline


def test_options_of_an_objective_are_its_own():
    config = LearnerConfig(objective={"clip_low": 0.1})
    assert config.objective == Clip(clip_low=0.1)
    assert config.model_dump()["objective"] == {"name": "clip", "clip_low": 0.1, "clip_high": 0.4}
    assert LearnerConfig.model_validate(config.model_dump()) == config


def test_sums_and_means_over_items():
    values, items = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 2])
    assert item_sums(values, items).tolist() == [1, 0, 8]
    assert item_means(values, items).tolist() == [1, 0, 4]


def trained(objective: Objective) -> float:
    """Return the log-probability of one token with advantage 1 after ten steps from 0."""
    logprob = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([logprob], lr=0.01)
    one = torch.ones(1)
    for _ in range(10):
        tokens = TrainedTokens(
            logprobs=logprob,
            old=torch.zeros(1),
            advantages=one,
            weights=one,
            items=torch.zeros(1, dtype=torch.long),
            correction=one,
        )
        optimizer.zero_grad()
        policy_loss(tokens, objective, kl_beta=0.0).loss.backward()
        optimizer.step()
    return logprob.item()


def by_hand(gradient) -> float:
    """Return where ten steps of size 0.01 along `gradient(rho)` lead a log-probability from 0."""
    x = 0.0
    for _ in range(10):
        x += 0.01 * gradient(math.exp(x))
    return x


@pytest.mark.parametrize(
    ("objective", "gradient"),
    [
        ("own_objectives:Tapered", lambda rho: math.exp(-abs(rho - 1))),
        (
            {"name": "own_objectives:Tapered", "width": 0.5},
            lambda rho: math.exp(-abs(rho - 1) / 0.5),
        ),
        ("own_objectives:squared", lambda rho: rho - (rho - 1) * rho),
    ],
)
def test_an_objective_of_your_own_trains(own_files, objective, gradient):
    config = LearnerConfig(objective=objective)
    assert trained(config.objective) == pytest.approx(by_hand(gradient), rel=1e-4)


def test_what_an_own_class_says_beside_its_surrogate_counts(own_files):
    own = {"name": "own_objectives:Tapered", "width": 0.5}
    out, _ = loss(own, (LN2, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0))
    assert out.clipped.tolist() == [1, 0]
    assert objectives.parse(own).divisor([3, 9]) == 2.0
    assert objectives.parse("own_objectives:squared").divisor([3, 9]) is None


IN_ANOTHER_PROCESS = """
import pickle, sys
import torch
config = pickle.load(sys.stdin.buffer)
ratio = torch.tensor([1.5])
print(config.objective.surrogate(ratio.log(), ratio, torch.tensor([1.0])).item())
"""


@pytest.mark.parametrize(
    "objective", [{"name": "own_objectives:Tapered", "width": 0.5}, "own_objectives:squared"]
)
def test_an_objective_of_your_own_reaches_another_process(own_files, objective):
    config = LearnerConfig(objective=objective)
    ratio = torch.tensor([1.5])
    expected = config.objective.surrogate(ratio.log(), ratio, torch.tensor([1.0])).item()
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        input=pickle.dumps(config),
        capture_output=True,
        cwd=own_files,
        check=True,
    )
    assert float(done.stdout) == expected


EXPECTED = "expected a function of (logprobs, ratio, advantages) or a subclass of"


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("clop", "'clop': expected one of clip, dr_grpo, dapo, rloo, gspo, cispo, or package"),
        (3, "3: expected one of clip"),
        ("own_objectives", "'own_objectives': expected one of clip"),
        ("nowhere:loss", "cannot import nowhere: ModuleNotFoundError"),
        ("own_broken:loss", "cannot import own_broken: RuntimeError: no luck"),
        ("own_objectives:missing", "own_objectives has no missing"),
        ("own_objectives:NUMBER", EXPECTED),
        ("own_objectives:two", EXPECTED),
        ("own_objectives:Empty", "has no surrogate; " + EXPECTED),
        ({"name": "own_objectives:Tapered", "widht": 1}, "unknown option 'widht'"),
        ({"name": "own_objectives:Tapered", "width": 0}, "width=0: Input should be greater than 0"),
        ({"name": "own_objectives:squared", "width": 1}, "unknown option 'width'"),
        ({"name": "rloo", "loss_length": 4, "clip_low": 0.1}, "unknown option 'clip_low'"),
        ("rloo", "loss_length=0: the objective divides by it; expected the longest response"),
        ({"name": "dr_grpo", "loss_length": -1}, "loss_length=-1: Input should be greater than"),
    ],
)
def test_a_wrong_objective_is_one_line(own_files, objective, message):
    with pytest.raises(ValueError, match="objectives") as caught:
        objectives.parse(objective)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_surrogate_needs_a_term_for_each_token(own_files):
    with pytest.raises(ValueError, match=r"'own_objectives:mean': its surrogate has shape \[\]"):
        loss("own_objectives:mean", (0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("objective", BUILTIN)
def test_a_builtin_objective_has_no_gradient_without_advantage(objective):
    # Ratios below, within and above all bounds; tokens 0 and 3 have an advantage.
    logprobs, old = (-1.0, -0.1, -2.0, -0.5), (-1.1, -2.0, -0.2, -0.5)
    advantages, items = (1.0, 0.0, 0.0, -1.0), (0, 1, 1, 2)
    assert LearnerConfig.model_validate({"objective": objective}).objective.zero_without_advantage
    _, gradient = loss(objective, logprobs, old, advantages, weights=(1.0,) * 4, items=items)
    assert gradient[1:3] == [0.0, 0.0]
    assert 0.0 not in (gradient[0], gradient[3])


def test_an_objective_of_ones_own_is_not_taken_to_vanish_without_advantage(own_files):
    own = LearnerConfig.model_validate({"objective": "own_objectives:squared"}).objective
    assert not own.zero_without_advantage
