"""Multimodal train items of random tokens, and an independent learner to compare with.

The model is a real tiny Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from learner.credit import TrainItem, credit
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
)


def ids_of(model: str) -> dict[str, int]:
    from transformers import Qwen3VLConfig

    config = Qwen3VLConfig.from_pretrained(model)
    return {
        "start": config.vision_start_token_id,
        "image": config.image_token_id,
        "end": config.vision_end_token_id,
    }


def make_items(
    model: str, count: int, seed: int = 0, advantage: float | None = None
) -> list[TrainItem]:
    """Return items of random tokens and of different lengths.

    There are three items of each question, which share its image. Every third item has a zoomed
    image of its own.
    """
    rng = np.random.default_rng(seed)
    ids = ids_of(model)
    vision = [ids["start"], ids["image"], ids["end"]]

    def words(n: int) -> list[int]:
        return rng.integers(20, 250, n).tolist()  # bytes: the special ids lie above

    items = []
    for i in range(count):
        image = np.random.default_rng(i // 3).integers(0, 255, (96, 128, 3)).astype(np.uint8)
        question = Question(f"q{i // 3}", "", (image,), "")
        parts = [words(int(rng.integers(5, 40)))]
        segments: list = [
            PolicySegment(np.array(parts[0], np.int32), np.full(len(parts[0]), -6.0, np.float32), 0)
        ]
        if i % 3 == 0:
            zoom = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
            segments.append(
                ObservationSegment(np.array([*words(3), *vision, *words(2)], np.int32), (zoom,))
            )
            last = words(int(rng.integers(5, 20)))
            segments.append(
                PolicySegment(np.array(last, np.int32), np.full(len(last), -6.0, np.float32), 0)
            )
        trajectory = Trajectory(
            question.id,
            i % 3,
            np.array([*words(8), *vision, *words(9)], np.int32),
            tuple(segments),
            EndReason.ANSWERED,
        )
        mask = trajectory.policy_mask
        a = float(rng.normal()) if advantage is None else advantage
        items.append(
            TrainItem(
                question, trajectory, np.where(mask, a, 0).astype(np.float32), mask, 1 / count
            )
        )
    return items


def forked_items(model: str, seed: int = 0) -> list[TrainItem]:
    """Return the items of a question with four rollouts, one of which is forked.

    Two of the rollouts call a tool and fail; the first of these is forked twice at its call. Its
    prompt and image are in all seven rows, its prefix in three, and each continuation looks at an
    image of its own.
    """
    rng = np.random.default_rng(seed)
    ids = ids_of(model)
    vision = [ids["start"], ids["image"], ids["end"]]
    # Any ids will do: what they mean is the business of SpecialTokens.
    think_close, call_open, call_close, im_end = 251, 252, 253, 254
    tokens = SpecialTokens(
        im_start=1,
        im_end=im_end,
        think_close=think_close,
        call_open=call_open,
        call_close=call_close,
        vision_start=ids["start"],
        vision_end=ids["end"],
        image_pad=ids["image"],
        video_pad=3,
    )
    image = rng.integers(0, 255, (96, 128, 3)).astype(np.uint8)
    question = Question(f"forked{seed}", "", (image,), "")
    prompt = np.array([*rng.integers(20, 250, 12), *vision, *rng.integers(20, 250, 20)], np.int32)

    def policy(*parts: list[int]) -> PolicySegment:
        flat = np.array([token for part in parts for token in part], np.int32)
        return PolicySegment(flat, np.full(len(flat), -6.0, np.float32), 0)

    def words(low: int, high: int) -> list[int]:
        return rng.integers(20, 250, rng.integers(low, high)).tolist()

    def rollout(
        number: int, parts: list, reward: float, fork: ForkPoint | None = None
    ) -> Trajectory:
        return Trajectory(
            question.id, number, prompt, tuple(parts), EndReason.ANSWERED, None, reward, fork
        )

    def after_call() -> list:
        zoom = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        observation = ObservationSegment(
            np.array([*words(2, 5), *vision, *words(2, 5)], np.int32), (zoom,)
        )
        return [observation, policy(words(3, 9), [think_close], words(2, 4), [im_end])]

    def direct(number: int, reward: float) -> Trajectory:
        return rollout(number, [policy(words(4, 20), [think_close], words(2, 5), [im_end])], reward)

    def call() -> list[int]:
        return [*words(5, 9), call_close, im_end]

    prefix = [*words(6, 12), think_close, call_open]
    source = rollout(0, [policy(prefix, call()), *after_call()], 0.0)
    other = rollout(1, [policy(words(6, 12), [think_close, call_open], call()), *after_call()], 0.0)
    forks = [
        rollout(
            0, [policy(prefix, call()), *after_call()], float(k == 0), ForkPoint(0, k, len(prefix))
        )
        for k in range(2)
    ]
    group = Group(
        question,
        (source, other, direct(2, 1.0), direct(3, 0.0)),
        0,
        (Resample(0, len(prefix), tuple(forks)),),
    )
    return credit([group], tokens)


def plain_torch_loss(model: str, items: list[TrainItem]):
    """Return the model and the loss of an independent learner.

    It uses Hugging Face's own processor and forward, one item at a time, and autograd.
    """
    network = plain_model(model, torch.float32)
    total = torch.zeros(())
    for item, logprobs in zip(items, _plain_logprobs(network, model, items), strict=True):
        ratio = (logprobs - torch.from_numpy(item.trajectory.logprobs[item.mask])).exp()
        a = torch.from_numpy(item.advantages[item.mask])
        total = total - item.weight * torch.minimum(ratio * a, ratio.clamp(0.8, 1.4) * a).mean()
    return network, total


def plain_torch_logprobs(
    model: str, items: list[TrainItem], dtype: torch.dtype, device: torch.device
) -> list[np.ndarray]:
    """Return each item's log-probabilities of its trained tokens, by an independent learner."""
    network = plain_model(model, dtype).to(device)
    with torch.no_grad():
        return [logprobs.cpu().numpy() for logprobs in _plain_logprobs(network, model, items)]


def plain_model(model: str, dtype: torch.dtype):
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration.from_pretrained(
        model, dtype=dtype, attn_implementation="eager"
    )


def _plain_logprobs(network, model: str, items: list[TrainItem]) -> Iterator[torch.Tensor]:
    from PIL import Image
    from transformers import AutoProcessor, AutoTokenizer

    ids = ids_of(model)
    processor = AutoProcessor.from_pretrained(model).image_processor
    # The vision placeholders, and the ids that the tokenizer has no token for.
    placeholders = [ids["start"], ids["image"], ids["end"], network.config.video_token_id]
    known, rows = len(AutoTokenizer.from_pretrained(model)), network.config.text_config.vocab_size
    banned = [*placeholders, *range(known, rows)]
    for item in items:
        t = item.trajectory
        images = processor(
            [Image.fromarray(i) for i in (*item.question.images, *t.images)], return_tensors="pt"
        ).to(network.device)
        features = iter((images["image_grid_thw"].prod(-1) // 4).tolist())
        tokens, trained = [], []
        for token, mask in zip(
            [*t.prompt_ids, *t.response_ids],
            [*[False] * len(t.prompt_ids), *item.mask],
            strict=True,
        ):
            n = next(features) if token == ids["image"] else 1
            tokens += [int(token)] * n
            trained += [bool(mask)] * n
        input_ids = torch.tensor([tokens], device=network.device)
        logits = network(
            input_ids=input_ids, mm_token_type_ids=(input_ids == ids["image"]).long(), **images
        ).logits[0, :-1]
        logits = logits.float()
        logits[:, banned] = float("-inf")
        chosen = logits.log_softmax(-1).gather(-1, input_ids[0, 1:, None])[:, 0]
        yield chosen[torch.tensor(trained[1:], device=network.device)]
