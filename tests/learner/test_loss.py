"""Token losses against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.loss import TrainedTokens, gap_correction, k3, nll_loss, policy_loss
from learner.objectives import Clip, objectives
from learner.schedule import lr_factor
from learner.stats import summarize

LN2 = math.log(2)
BUILTIN = [
    "clip",
    {"name": "dr_grpo", "loss_length": 4},
    "dapo",
    {"name": "rloo", "loss_length": 4},
    "gspo",
    "cispo",
]


def loss(
    objective="clip",
    logprobs=(0.0,),
    old=(0.0,),
    advantages=(1.0,),
    weights=(1.0,),
    items=None,
):
    """The loss of tokens with the given probabilities' logs, and its gradient by each log-probability."""
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
    out = policy_loss(tokens, objectives.parse(objective), kl_beta=1e-3)
    out.loss.backward()
    return out, x.grad.tolist()


def test_clipped_surrogate_is_clipped_on_the_side_that_would_gain():
    ratio = torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 2.0])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    # A > 0: min(rho, clip) = 0.5, 1, 1.4; A < 0: -max(rho, clip) = -0.8, -1, -2
    assert Clip().surrogate(ratio.log(), ratio, advantages).tolist() == pytest.approx(
        [0.5, 1.0, 1.4, -0.8, -1.0, -2.0]
    )


def test_k3():
    # reference half as likely: d = -ln 2: 1/2 + ln 2 - 1; twice as likely: 2 - ln 2 - 1
    logprobs = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    reference = torch.log(torch.tensor([0.25, 0.5, 0.25]))
    assert k3(logprobs, reference).tolist() == pytest.approx([LN2 - 0.5, 1 - LN2, 0.0], abs=1e-6)


def test_policy_loss_sums_weighted_tokens_and_reports_each():
    # trajectory 1: weight 1/2 over 2 tokens, A = 1, rho 1 and 2 (clipped to 1.4); trajectory 2: weight 1/2, 1 token, A = -2, rho 1
    old = torch.log(torch.tensor([0.5, 0.25, 0.5]))
    logprobs = torch.log(torch.tensor([0.5, 0.5, 0.5])).requires_grad_()
    reference = torch.log(torch.tensor([0.25, 0.5, 0.5]))
    advantages, weights, items = (
        torch.tensor([1.0, 1.0, -2.0]),
        torch.tensor([0.25, 0.25, 0.5]),
        torch.tensor([0, 0, 1]),
    )
    tokens = TrainedTokens(
        logprobs=logprobs,
        old=old,
        advantages=advantages,
        weights=weights,
        items=items,
        correction=torch.ones(3),
        reference=reference,
    )
    out = policy_loss(tokens, Clip(), kl_beta=0.1)
    kl = LN2 - 0.5  # of the first token
    assert out.policy_loss.item() == pytest.approx(-(0.25 * 1 + 0.25 * 1.4 + 0.5 * -2))
    assert out.loss.item() == pytest.approx(0.4 + 0.1 * 0.25 * kl)
    assert out.kl.tolist() == pytest.approx([kl, 0, 0], abs=1e-6)
    assert out.clipped.tolist() == [0, 1, 0]
    assert out.ratio.tolist() == pytest.approx([1, 2, 1])
    out.loss.backward()
    # d/dlogprob: -w A rho, 0 where clipped; KL: beta w (1 - exp(d))
    assert logprobs.grad.tolist() == pytest.approx([-0.25 + 0.1 * 0.25 * 0.5, 0.0, 1.0])


@pytest.mark.parametrize("objective", BUILTIN)
def test_on_policy_every_objective_has_the_policy_gradient(objective):
    # ratio 1: d(loss)/d(logprob) = -w A, whatever the surrogate. Item 0 has two tokens of one advantage.
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
    # Item 0: log ratios ln 2 and 0, geometric mean sqrt(2), clipped to 1.4: no gradient. Item 1: log ratio -ln 2 at A = 1: rho 1/2.
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
    _, grad = loss(BUILTIN[3], (LN2,), (0.0,), (1.0,), (1.0,))
    assert grad == pytest.approx([-2.0])


def test_gap_correction():
    learner, engine = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([-math.log(3), math.log(4), 0.0])
    items = torch.tensor([0, 0, 1])  # weights 3, 1/4 and 1; of the first trajectory 3/4

    def weights(mode, level):
        config = LearnerConfig(correction=mode, correction_level=level, correction_cap=2.0)
        return gap_correction(learner, engine, items, config).tolist()

    assert weights("none", "token") == [1, 1, 1]
    assert weights("truncate", "token") == pytest.approx([2, 0.25, 1])
    assert weights("mask", "token") == [0, 0, 1]
    assert weights("truncate", "sequence") == pytest.approx([0.75, 0.75, 1])
    assert weights("mask", "sequence") == [1, 1, 1]


def test_a_correction_scales_the_surrogate_and_not_the_kl():
    logprobs = torch.zeros(1, requires_grad=True)
    reference = torch.full((1,), -LN2)
    one = torch.ones(1)
    tokens = TrainedTokens(
        logprobs=logprobs,
        old=torch.zeros(1),
        advantages=one,
        weights=one,
        items=torch.tensor([0]),
        correction=one * 0.25,
        reference=reference,
    )
    out = policy_loss(tokens, Clip(), kl_beta=1.0)
    assert out.loss.item() == pytest.approx(-0.25 + LN2 - 0.5)


def test_statistics_over_tokens():
    out = summarize(
        {
            "ratio": np.array([1.0, 1.0, 4.0]),
            "gap": np.array([LN2, -LN2]),
            "clipped": np.array([1.0, 0.0]),
            "kl": np.zeros(0),
        }
    )
    assert (out["ratio_mean"], out["ratio_max"], out["ratio_p50"]) == (2, 4, 1)
    # k3 of learner / engine = 2 and 1/2: (1 - ln 2 + ln 2 - 1/2) / 2
    assert out["engine_kl"] == pytest.approx(0.25)
    assert out["logprob_gap_max"] == pytest.approx(LN2)
    assert out["clip_fraction"] == 0.5
    assert "kl" not in out


def test_nll():
    assert nll_loss(torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25])).item() == 1.0


def test_learning_rate_warms_up_then_stays_or_follows_the_cosine():
    constant = LearnerConfig(warmup_steps=4)
    assert [lr_factor(s, constant) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = LearnerConfig(warmup_steps=2, schedule="cosine", total_steps=6)
    assert [lr_factor(s, cosine) for s in (0, 1, 2, 4, 6, 7)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    )
    with pytest.raises(ValueError, match="total_steps=0"):
        LearnerConfig(schedule="cosine")
