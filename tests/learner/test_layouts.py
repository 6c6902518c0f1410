"""Packed and tree batches against separate sequences, on a real tiny Qwen3-VL.

Log-probabilities and gradients are the same.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from axpo.sft.embedded import build
from learner import attention
from learner.batch import MicroBatch, collate
from learner.config import Layout
from learner.images import ImageStore, StepImages
from learner.policy import ATTENTION, Policy
from learner.rows import VisionTokens, make_row
from tests.learner.multimodal import forked_items, ids_of, make_items

pytestmark = [pytest.mark.engine]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(
        build(tmp_path_factory.mktemp("model") / "tiny", ["a few words to learn tokens from"])
    )


@pytest.fixture(scope="module")
def policy(model: str) -> Policy:
    from transformers import Qwen3VLForConditionalGeneration

    attention.register()
    network = Qwen3VLForConditionalGeneration.from_pretrained(
        model, dtype=torch.float32, attn_implementation=ATTENTION
    )
    return Policy(network, [ids_of(model)["image"]], temperature=0.9)


def batches(model: str, items: list, layout: Layout, size: int) -> list[MicroBatch]:
    """Return the items as micro-batches of `size` items each."""
    from transformers import AutoProcessor

    ids = ids_of(model)
    images = StepImages(ImageStore(AutoProcessor.from_pretrained(model).image_processor))
    rows = [make_row(item, images, ids["image"]) for item in items]
    vision = VisionTokens(ids["image"], ids["start"], ids["end"])
    return [collate(rows[i : i + size], images, vision, layout) for i in range(0, len(rows), size)]


def compute(
    policy: Policy, parts: list[MicroBatch]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return log-probabilities, entropies and gradients.

    The loss weighs every token differently.
    """
    policy.zero_grad()
    logprobs, entropies = zip(*(policy(part) for part in parts), strict=True)
    flat = torch.cat(logprobs)
    (flat * torch.linspace(-1, 1, len(flat))).sum().backward()
    grads = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return flat.detach(), torch.cat(entropies), grads


@pytest.fixture(scope="module")
def items(model: str) -> list:
    return [*forked_items(model), *make_items(model, 4)]


@pytest.fixture(scope="module")
def separate(policy: Policy, model: str, items: list):
    """Compute one padded micro-batch a sequence: nothing is padded, packed or shared."""
    return compute(policy, batches(model, items, "padded", 1))


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("size", [3, 100])
def test_layouts_equal_separate_sequences(
    policy: Policy, model: str, items: list, separate, layout: Layout, size: int
) -> None:
    parts = batches(model, items, layout, size)
    logprobs, entropies, grads = compute(policy, parts)
    torch.testing.assert_close(logprobs, separate[0], rtol=0, atol=5e-6)
    torch.testing.assert_close(entropies, separate[1], rtol=0, atol=1e-5)
    assert set(grads) == set(separate[2])
    for name, grad in grads.items():
        assert torch.norm(grad - separate[2][name]) <= 1e-5 * torch.norm(separate[2][name]), name


def test_a_tree_computes_shared_tokens_and_images_once(model: str, items: list) -> None:
    count = len(forked_items(model))
    (tree,), (packed,) = (
        batches(model, items[:count], layout, 100) for layout in ("tree", "packed")
    )
    (direct,) = batches(model, items[count - 1 : count], "packed", 1)
    prompt = int(direct.positions[0]) + 1
    prefix = int(items[0].mask.sum())
    # Six rows with one prompt. The source's row ends before the opening tag, which its two
    # continuations share as well.
    assert packed.input_ids.numel() - tree.input_ids.numel() == 5 * prompt + (prefix - 1) + prefix
    assert len(packed.image_index) == 6 + 3
    assert len(tree.image_index) == 1 + 3
