"""Token losses against numbers worked out by hand."""

import math

import pytest
import torch

from learner.config import LearnerConfig
from learner.loss import clipped_surrogate, k3, nll_loss, policy_loss
from learner.schedule import lr_factor

CLIP = {"clip_low": 0.2, "clip_high": 0.4}


def test_clipped_surrogate_is_clipped_on_the_side_that_would_gain():
    ratio = torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 2.0])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    # A > 0: min(rho, clip) = 0.5, 1, 1.4; A < 0: -max(rho, clip) = -0.8, -1, -2
    assert clipped_surrogate(ratio, advantages, 0.2, 0.4).tolist() == pytest.approx([0.5, 1.0, 1.4, -0.8, -1.0, -2.0])


def test_k3():
    # reference half as likely: d = -ln 2: 1/2 + ln 2 - 1; twice as likely: 2 - ln 2 - 1
    logprobs = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    reference = torch.log(torch.tensor([0.25, 0.5, 0.25]))
    assert k3(logprobs, reference).tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0.0], abs=1e-6)


def test_policy_loss_sums_weighted_tokens_and_reports_statistics():
    # trajectory 1: weight 1/2 over 2 tokens, A = 1, rho 1 and 2 (clipped to 1.4); trajectory 2: weight 1/2, 1 token, A = -2, rho 1
    old = torch.log(torch.tensor([0.5, 0.25, 0.5]))
    logprobs = torch.log(torch.tensor([0.5, 0.5, 0.5])).requires_grad_()
    reference = torch.log(torch.tensor([0.25, 0.5, 0.5]))
    out = policy_loss(logprobs, old, torch.tensor([1.0, 1.0, -2.0]), torch.tensor([0.25, 0.25, 0.5]), reference, **CLIP, kl_beta=0.1)
    kl = math.log(2) - 0.5  # of the first token
    assert out.policy_loss.item() == pytest.approx(-(0.25 * 1 + 0.25 * 1.4 + 0.5 * -2))
    assert out.loss.item() == pytest.approx(0.4 + 0.1 * 0.25 * kl)
    assert (out.kl.item(), out.clipped.item(), out.ratio.item(), out.ratio_max.item()) == pytest.approx((kl, 1, 4.0, 2.0))
    assert out.gap.item() == pytest.approx(math.log(2))
    out.loss.backward()
    # d/dlogprob: -w A rho, 0 where clipped; KL: beta w (1 - exp(d))
    assert logprobs.grad.tolist() == pytest.approx([-0.25 + 0.1 * 0.25 * 0.5, 0.0, 1.0])


def test_policy_loss_of_no_tokens_is_zero_with_a_gradient():
    logprobs = torch.zeros(0, requires_grad=True)
    out = policy_loss(logprobs, torch.zeros(0), torch.zeros(0), torch.zeros(0), None, **CLIP, kl_beta=0.0)
    out.loss.backward()
    assert out.loss.item() == 0
    assert out.ratio_max.item() == 0


def test_nll():
    assert nll_loss(torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25])).item() == 1.0


def test_learning_rate_warms_up_then_stays_or_follows_the_cosine():
    constant = LearnerConfig(warmup_steps=4)
    assert [lr_factor(s, constant) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = LearnerConfig(warmup_steps=2, schedule="cosine", total_steps=6)
    assert [lr_factor(s, cosine) for s in (0, 1, 2, 4, 6, 7)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
    with pytest.raises(ValueError, match="total_steps=0"):
        LearnerConfig(schedule="cosine")
    with pytest.raises(ValueError, match="weight_transfer='nccl' needs gpus_per_rank=1"):
        LearnerConfig(weight_transfer="nccl")
