"""The chunked head against full logits."""

import pytest
import torch

from learner.head import Head

V, H, M = 50, 8, 23
BANNED = [3, 7]
TEMPERATURE = 0.7


def full(hidden, weight, targets):
    logits = (hidden @ weight.T).float()
    bias = torch.zeros(V)
    bias[BANNED] = -100.0
    logprobs = ((logits + bias) / TEMPERATURE).log_softmax(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("chunk", [1, 4 * V, 1 << 20])
def test_logprobs_entropies_and_gradients_do_not_depend_on_the_chunk(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(M, H, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(V, H))
    targets = torch.randint(10, V, (M,))
    expected, entropies = full(hidden, weight, targets)
    up = torch.randn(M)
    want = torch.autograd.grad((expected * up).sum(), (hidden, weight))
    logprobs, got_entropies = Head(weight, BANNED, TEMPERATURE, chunk)(hidden, targets)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(got_entropies, entropies)
    for a, b in zip(
        torch.autograd.grad((logprobs * up).sum(), (hidden, weight)), want, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_and_no_tokens():
    weight = torch.nn.Parameter(torch.randn(V, H), requires_grad=False)
    hidden = torch.randn(M, H, requires_grad=True)
    Head(weight, BANNED, 1.0)(hidden, torch.zeros(M, dtype=torch.long))[0].sum().backward()
    assert hidden.grad.abs().sum() > 0
    nothing = torch.zeros(0, H, requires_grad=True)
    logprobs, _ = Head(torch.nn.Parameter(torch.randn(V, H)), BANNED, 1.0)(
        nothing, torch.zeros(0, dtype=torch.long)
    )
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
