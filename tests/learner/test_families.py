"""The learner on every model family, against plain transformers, with images of several sizes.

The folders are real in everything but weights, width and depth (`tests/real`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from learner import attention
from learner.batch import collate
from learner.config import Layout
from learner.credit import TrainItem
from learner.images import ImageStore, StepImages, image_processor
from learner.policy import ATTENTION, Policy, read_safetensors
from learner.rows import VisionTokens, make_row
from rollout_workers.chat import Chat
from rollout_workers.families import family_of
from rollout_workers.trajectory import Pixels, Question, Trajectory
from tests.rollout_workers.helpers import Result

pytestmark = [pytest.mark.engine]
CALL = '<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2]}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "zoom", "parameters": {}}}]


def noise(width: int, height: int) -> Pixels:
    rng = np.random.default_rng(width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["thinking", "instruct", "qwen2_5"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat.load(str(folder))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return image_processor(str(folder))


@pytest.fixture(scope="module")
def items(chat: Chat) -> list[TrainItem]:
    """Three rollouts of a question with two images.

    Two of them call a tool alike, and see images of different sizes.
    """
    images = (noise(320, 240), noise(20, 20))
    question = Question("q", "which digit, of the two?", images, "7")
    call, answer = f"I look.\n</think>\n\n{CALL}", "clear\n</think>\n\n\\boxed{7}"
    scripts: list[list[Any]] = [
        [call, [Result("ok", "zoomed.", (noise(1000, 15),))], answer],
        [call, [Result("ok", "", (noise(56, 84), noise(300, 100)))], answer],
        ["\n</think>\n\n\\boxed{8}"],
    ]
    written = [chat.trajectory(question, TOOLS, "look", turns) for turns in scripts]
    return [_item(question, trajectory) for trajectory in written]


def _item(question: Question, trajectory: Trajectory) -> TrainItem:
    mask = trajectory.policy_mask
    return TrainItem(question, trajectory, mask.astype(np.float32), mask, 1.0)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    model_class = getattr(transformers, family_of(folder).architecture.model_class)
    return model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture(scope="module")
def plain(chat: Chat, items: list[TrainItem], model: Any, processor: Any) -> torch.Tensor:
    """Log-probabilities of the trained tokens by transformers alone, an item at a time."""
    banned = list(chat.tokens.banned)
    with torch.no_grad():
        return torch.cat([_plain(model, processor, banned, item) for item in items])


def _plain(model: Any, processor: Any, banned: list[int], item: TrainItem) -> torch.Tensor:
    trajectory = item.trajectory
    shown = [Image.fromarray(image) for image in (*item.question.images, *trajectory.images)]
    images = processor(shown, return_tensors="pt")
    pad = model.config.image_token_id
    features = iter((images["image_grid_thw"].prod(-1) // 4).tolist())
    ids, trained = [], []
    mask = [*[False] * len(trajectory.prompt_ids), *item.mask]
    for token, is_trained in zip(
        [*trajectory.prompt_ids, *trajectory.response_ids], mask, strict=True
    ):
        count = next(features) if token == pad else 1
        ids += [int(token)] * count
        trained += [bool(is_trained)] * count
    row = torch.tensor([ids])
    hidden = model.model(
        input_ids=row, mm_token_type_ids=(row == pad).long(), use_cache=False, **images
    ).last_hidden_state
    places = torch.tensor(trained[1:]).nonzero()[:, 0]
    # In float32, torch's log_softmax is 3e-4 off for a vocabulary of this size.
    logits = model.lm_head(hidden[0, places]).double()
    logits[:, banned] = float("-inf")
    return logits.log_softmax(-1).gather(-1, row[0, places + 1, None])[:, 0].float()


@pytest.fixture(scope="module")
def policy(chat: Chat, model: Any, plain: torch.Tensor) -> Policy:
    """The same model, once `plain` is done, with the learner's attention."""
    attention.register()
    model.set_attn_implementation(ATTENTION)
    return Policy(model, chat.tokens.banned, temperature=1.0)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_log_probabilities_equal_plain_transformers(
    chat: Chat,
    items: list[TrainItem],
    plain: torch.Tensor,
    policy: Policy,
    processor: Any,
    layout: Layout,
):
    tokens, images = chat.tokens, StepImages(ImageStore(processor))
    rows = [make_row(item, images, tokens.image_pad) for item in items]
    vision = VisionTokens(tokens.image_pad, tokens.vision_start, tokens.vision_end)
    batch = collate(rows, images, vision, layout)
    with torch.no_grad():
        logprobs, _ = policy(batch)
    torch.testing.assert_close(logprobs, plain, rtol=0, atol=1e-5)
    # Five distinct images; a tree shows those of the question once.
    assert len(batch.image_grid_thw) == 5
    assert len(batch.image_index) == (5 if layout == "tree" else 9)


def test_every_weight_of_a_folder_has_its_place(folder: Path, policy: Policy):
    """Also under the names that the folders of the hub have."""
    architecture = family_of(folder).architecture
    found = {architecture.parameter_name(name) for name, _ in read_safetensors(str(folder))}
    assert found == {name for name, _ in policy.model.named_parameters()}
