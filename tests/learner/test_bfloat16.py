"""Numbers in bfloat16 that must not be: buffers, and sums of gradients.

Right values are computed in float64 from the same bfloat16 terms. Rounding a result once costs
2^-9 of a number at most, about 0.17 % of a norm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from learner import buffers, zero
from learner.attention import tree_attention
from learner.config import LearnerConfig
from learner.cpu_sums import use_float32_sums
from learner.head import Head
from learner.policy import features_at, hidden_at
from learner.tree import lay_out
from tests.real.folder import Family, Spec, config_of

BFLOAT16 = torch.bfloat16
ONE_ROUNDING = 2.2e-3
FAMILIES = {
    "thinking": transformers.Qwen3VLForConditionalGeneration,
    "qwen2_5": transformers.Qwen2_5_VLForConditionalGeneration,
}


def error(found: Tensor, right: Tensor) -> float:
    """Return |found - right| / |right|, in norms."""
    return float((found.detach().double() - right.detach()).norm() / right.detach().norm())


def biased(*shape: int, seed: int = 0) -> Tensor:
    """Return bfloat16 numbers with a mean of 0.3, so that sums of them grow."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) + 0.3).to(BFLOAT16)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A model of a family with the rotary positions of the hub's, in bfloat16 throughout."""
    family: Family = request.param
    (tmp_path / "config.json").write_text(json.dumps(config_of(Spec(family, hidden=128, layers=1))))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = FAMILIES[family]._from_config(config)
    # As zero.Init leaves them.
    for name, buffer in buffers.float32_buffers(model).items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Buffer(buffer.to(BFLOAT16), persistent=False))
    return model


def rotary(dimension: int, base: float) -> Tensor:
    """Compute rotary frequencies by their definition, base^(-2i / d)."""
    return torch.tensor([base ** (-2 * i / dimension) for i in range(dimension // 2)])


def test_buffers_are_restored_to_the_frequencies_of_the_definition(model: Any) -> None:
    text = model.config.text_config
    vision = model.config.vision_config
    heads = vision.hidden_size // vision.num_heads
    buffers.restore(model)
    right = {
        "language_model": rotary(128, text.rope_parameters["rope_theta"]),
        # Half of a head's numbers for each of the two axes.
        "visual": rotary(heads // 2, 10_000.0),
    }
    found = dict(model.named_buffers())
    assert len(found) == 4
    for name, buffer in found.items():
        of = "visual" if "visual" in name else "language_model"
        torch.testing.assert_close(buffer, right[of], rtol=3e-7, atol=0)
    buffers.check(model)


def test_a_buffer_that_lost_digits_is_named(model: Any) -> None:
    with pytest.raises(ValueError, match=r"buffer model\.visual\.rotary\S+inv_freq .*bfloat16"):
        buffers.check(model)
    buffers.restore(model)
    # Back in float32, but with the digits of bfloat16.
    rotary_embedding = model.model.language_model.rotary_emb
    lost = rotary_embedding.inv_freq.to(BFLOAT16).float()
    rotary_embedding.inv_freq.copy_(lost)
    expected = r"buffer model\.language_model\.rotary_emb\.inv_freq .*float32 and off by up to"
    with pytest.raises(ValueError, match=expected):
        buffers.check(model)


def test_a_buffer_that_the_config_does_not_give_is_named(model: Any) -> None:
    buffers.restore(model)
    model.register_buffer("table", torch.zeros(3))
    with pytest.raises(ValueError, match="buffer table is not both"):
        buffers.check(model)


def test_a_float32_build_draws_no_random_numbers_and_leaves_the_config(model: Any) -> None:
    state, config = torch.get_rng_state(), model.config.to_dict()
    buffers.restore(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config


def test_logits_keep_the_digits_of_their_sums() -> None:
    torch.manual_seed(0)
    # Logits up to 60, where bfloat16 numbers lie 0.25 apart.
    hidden, weight = torch.randn(50, 256).to(BFLOAT16), torch.randn(300, 256).to(BFLOAT16)
    targets = torch.randint(0, 300, (50,))
    logprobs, entropies = Head(nn.Parameter(weight), [], 1.0)(hidden, targets)
    right = (hidden.double() @ weight.double().T).log_softmax(-1)
    entropy = -(right.exp() * right).sum(-1)
    assert (logprobs - right.gather(-1, targets[:, None])[:, 0]).abs().max() < 1e-4
    assert (entropies - entropy).abs().max() < 1e-4


@pytest.mark.parametrize("tokens_a_chunk", [1, 10, 1800])
def test_the_gradient_of_the_head_is_rounded_once_whatever_the_chunks(tokens_a_chunk: int) -> None:
    torch.manual_seed(0)
    tokens, vocabulary = 1800, 200
    hidden = torch.randn(tokens, 32).to(BFLOAT16)
    weight = (torch.randn(vocabulary, 32) * 0.05).to(BFLOAT16)
    targets, up = torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) / tokens
    parameter = nn.Parameter(weight)
    head = Head(parameter, [], 1.0, tokens_a_chunk * vocabulary)
    (head(hidden, targets)[0] * up).sum().backward()
    exact = weight.double().requires_grad_()
    logprobs = (hidden.double() @ exact.T).log_softmax(-1)
    (logprobs.gather(-1, targets[:, None])[:, 0] * up).sum().backward()
    assert parameter.grad is not None
    assert exact.grad is not None
    # Two roundings: the gradient by the logits, and the result. Before, 180 chunks had 2.5 %.
    assert error(parameter.grad, exact.grad) < 2 * ONE_ROUNDING


def test_embeddings_and_layer_norms_sum_their_gradients_in_float32_on_a_cpu() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 64), "norm": nn.LayerNorm(64)})
    model.to(BFLOAT16)
    exact = nn.ModuleDict({"embedding": nn.Embedding(9, 64), "norm": nn.LayerNorm(64)}).double()
    exact.load_state_dict(model.state_dict())
    use_float32_sums(model)
    ids = torch.arange(4096) % 4  # each of four tokens 1,024 times
    for name, given in (("embedding", ids), ("norm", biased(4096, 64))):
        up = biased(4096, 64, seed=1)
        out = model[name](given)
        assert out.dtype == BFLOAT16
        out.backward(up)
        right = exact[name](given if name == "embedding" else given.double())
        right.backward(up.double())
        assert error(out, right) < ONE_ROUNDING
    for (name, found), right in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        assert right.grad is not None
        # torch's own kernels: 4 %, 2 % and 33 %.
        assert error(found.grad, right.grad) < ONE_ROUNDING, name


def test_no_other_model_gets_other_layers() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "norm": nn.LayerNorm(4)})
    use_float32_sums(model)
    assert [type(module) for module in model.values()] == [nn.Embedding, nn.LayerNorm]


def test_keys_that_many_nodes_share_sum_their_gradients_in_float32() -> None:
    # 64 rows of 2 tokens behind one prefix of 5.
    prefix = np.arange(5)
    laid = lay_out([np.append(prefix, [100 + i, 200 + i]) for i in range(64)], share=True)
    length = 5 + 2 * 64
    shapes = [(1, 4, length, 16), (1, 2, length, 16), (1, 2, length, 16)]
    given = [biased(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    up = biased(1, length, 4, 16, seed=3)
    gradients = []
    for dtype in (BFLOAT16, torch.float64):
        query, key, value = (tensor.detach().to(dtype).requires_grad_() for tensor in given)
        out, _ = tree_attention(None, query, key, value, None, tree=laid.tree)
        out.backward(up.to(dtype))
        gradients.append(value.grad[:, :, :5])
    # Attention itself rounds its gradients once for each of the 64 nodes.
    assert error(gradients[0], gradients[1]) < 2 * ONE_ROUNDING


def test_what_many_rollouts_read_or_show_sums_its_gradient_in_float32() -> None:
    # Hidden state 2 of 5 is read by 64 rollouts, and image 1 of 2 stands in all of them.
    given, up = biased(5, 256), biased(66, 256, seed=1)
    positions = torch.tensor([0, *[2] * 64, 4])
    hidden = given.clone().requires_grad_()
    rows = hidden_at(hidden, positions)
    assert torch.equal(rows, given[positions])
    rows.backward(up)
    images = given.clone().requires_grad_()
    features = features_at([images[0:2], images[2:3]], [1] * 64 + [0])
    # As the model takes them.
    features = torch.cat(features).to(BFLOAT16)
    assert torch.equal(features, given[[2] * 64 + [0, 1]])
    features.backward(up)
    for found, at, right in ((hidden, 2, up[1:65]), (images, 2, up[:64])):
        assert found.grad is not None
        # With sums in bfloat16 0.8 %.
        assert error(found.grad[at], right.double().sum(0)) < ONE_ROUNDING
    assert torch.equal(hidden.grad[[0, 4]], up[[0, 65]])
    assert torch.equal(images.grad[[0, 1]], up[64:])


def test_gradients_are_summed_in_float32_over_micro_batches_and_ranks() -> None:
    for of in (zero.trained, zero.frozen):
        config = of(LearnerConfig(dtype="bfloat16"))
        assert config["data_types"] == {"grad_accum_dtype": "fp32"}
        assert config["communication_data_type"] == "fp32"
        plain = of(LearnerConfig(dtype="float32"))
        assert not {"bf16", "data_types", "communication_data_type"} & set(plain)
