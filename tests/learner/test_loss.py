"""Token losses against numbers worked out by hand."""

import math

import pytest
import torch

from learner.config import LearnerConfig
from learner.loss import TrainedTokens, gap_correction, k3, nll_loss, policy_loss
from learner.objectives import Clip

LN2 = math.log(2)


def test_k3():
    # reference half as likely: d = -ln 2: 1/2 + ln 2 - 1; twice as likely: 2 - ln 2 - 1
    logprobs = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    reference = torch.log(torch.tensor([0.25, 0.5, 0.25]))
    assert k3(logprobs, reference).tolist() == pytest.approx([LN2 - 0.5, 1 - LN2, 0.0], abs=1e-6)


def test_policy_loss_sums_weighted_tokens_and_reports_each():
    # trajectory 1: weight 1/2 over 2 tokens, A = 1, rho 1 and 2 (clipped to 1.4)
    # trajectory 2: weight 1/2, 1 token, A = -2, rho 1
    logprobs = torch.log(torch.tensor([0.5, 0.5, 0.5])).requires_grad_()
    tokens = TrainedTokens(
        logprobs=logprobs,
        old=torch.log(torch.tensor([0.5, 0.25, 0.5])),
        advantages=torch.tensor([1.0, 1.0, -2.0]),
        weights=torch.tensor([0.25, 0.25, 0.5]),
        items=torch.tensor([0, 0, 1]),
        correction=torch.ones(3),
        reference=torch.log(torch.tensor([0.25, 0.5, 0.5])),
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


def test_gap_correction():
    learner = torch.tensor([0.0, 0.0, 0.0])
    engine = torch.tensor([-math.log(3), math.log(4), 0.0])
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
    one = torch.ones(1)
    tokens = TrainedTokens(
        logprobs=torch.zeros(1, requires_grad=True),
        old=torch.zeros(1),
        advantages=one,
        weights=one,
        items=torch.tensor([0]),
        correction=one * 0.25,
        reference=torch.full((1,), -LN2),
    )
    out = policy_loss(tokens, Clip(), kl_beta=1.0)
    assert out.loss.item() == pytest.approx(-0.25 + LN2 - 0.5)


def test_nll():
    assert nll_loss(torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25])).item() == 1.0
