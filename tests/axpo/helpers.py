"""Scripted rollouts over a vocabulary of words that grows as it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from resampler.places import fork_prefix_tokens
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    Ids,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    RolloutStats,
    SpecialTokens,
    Trajectory,
)

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "</think>", "<tool_call>", "</tool_call>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
TOKENS = SpecialTokens(*range(len(SPECIAL)))
QUESTION_IMAGE = np.full((20, 40, 3), 200, dtype=np.uint8)
CROP = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)

_words: list[str] = list(SPECIAL)


def encode(text: str) -> Ids:
    parts = re.findall("|".join(map(re.escape, SPECIAL)) + r"|\w+|\W", text)
    _words.extend(word for word in dict.fromkeys(parts) if word not in _words)
    return np.array([_words.index(word) for word in parts], dtype=np.int32)


def decode(ids: Sequence[int]) -> str:
    return "".join(_words[i] for i in ids)


def call(box: Sequence[float]) -> str:
    arguments = {"bbox_2d": list(box), "label": "digit", "img_idx": 0}
    return f"<tool_call>{json.dumps({'name': 'image_zoom_in', 'arguments': arguments})}</tool_call>"


def policy(text: str, probability: float = 0.5) -> PolicySegment:
    ids = encode(text)
    return PolicySegment(
        ids, np.full(len(ids), np.log(probability), dtype=np.float32), policy_version=3
    )


def after_call(answer: str) -> tuple[ObservationSegment, PolicySegment]:
    """What follows a closed call: the tool's crop, then the last turn."""
    text = "<|im_start|>user\n<tool_response>\ncrop <|vision_start|><|image_pad|><|vision_end|></tool_response><|im_end|>\n<think>\n"
    return ObservationSegment(encode(text), (CROP,)), policy(f"clear</think>{answer}<|im_end|>")


def direct(rollout: int, reward: float, question: str = "q") -> Trajectory:
    """One turn of 5 policy tokens that answers without a tool."""
    return Trajectory(
        question,
        rollout,
        encode("ask"),
        (policy("look</think>7.<|im_end|>"),),
        EndReason.ANSWERED,
        "7",
        reward,
    )


def zooming(
    rollout: int,
    reward: float,
    box: Sequence[float] = (100, 200, 300, 400),
    question: str = "q",
    failures: int = 0,
) -> Trajectory:
    """Two turns with one call between them."""
    segments = (policy(f"look</think>{call(box)}<|im_end|>"), *after_call("7"))
    stats = RolloutStats(tool_calls=1, tool_failures=failures)
    return Trajectory(
        question, rollout, encode("ask"), segments, EndReason.ANSWERED, "7", reward, stats=stats
    )


def resample(source: Trajectory, forks: Sequence[tuple[Sequence[float], float, int]]) -> Resample:
    """Forks of `source` at its first call, each (box, reward, cached tokens of a prompt of 100)."""
    cut = fork_prefix_tokens(source, TOKENS)
    prefix = PolicySegment(source.response_ids[:cut], source.logprobs[:cut], policy_version=3)
    continuations = tuple(
        Trajectory(
            source.question_id,
            source.rollout,
            source.prompt_ids,
            (
                prefix,
                policy(call(box).removeprefix("<tool_call>") + "<|im_end|>"),
                *after_call("7"),
            ),
            EndReason.ANSWERED,
            "7",
            reward,
            ForkPoint(source.rollout, k, cut),
            RolloutStats(prompt_tokens=100, cached_tokens=cached, tool_calls=1),
        )
        for k, (box, reward, cached) in enumerate(forks)
    )
    return Resample(source.rollout, cut, continuations)


def group(
    rollouts: Sequence[Trajectory], resamples: Sequence[Resample] = (), question: str = "q"
) -> Group:
    return Group(
        Question(question, f"Which digit is {question}?", (QUESTION_IMAGE,), "7"),
        tuple(rollouts),
        0,
        tuple(resamples),
    )
