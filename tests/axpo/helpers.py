"""Scripted rollouts over a vocabulary of words that grows as it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from resampler.places import FirstCall
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
PROMPT = "ask<|im_start|>assistant\n<think>\n"
QUESTION_IMAGE = np.full((20, 40, 3), 200, dtype=np.uint8)
CROP = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)

_words: list[str] = list(SPECIAL)


def encode(text: str) -> Ids:
    """Return the ids of a text's words; new words are added to the vocabulary."""
    parts = re.findall("|".join(map(re.escape, SPECIAL)) + r"|<think>|\w+|\W", text)
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
    """Return what follows a closed call: the tool's crop, then the last turn."""
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    text = f"<|im_start|>user\n<tool_response>\ncrop {picture}</tool_response><|im_end|>\n<think>\n"
    return ObservationSegment(encode(text), (CROP,)), policy(f"clear</think>{answer}<|im_end|>")


def direct(rollout: int, reward: float, question: str = "q") -> Trajectory:
    """Return a rollout of one turn, 5 policy tokens, that answers without a tool."""
    segments = (policy("look</think>7.<|im_end|>"),)
    return Trajectory(question, rollout, encode(PROMPT), segments, EndReason.ANSWERED, "7", reward)


def zooming(
    rollout: int,
    reward: float,
    box: Sequence[float] = (100, 200, 300, 400),
    question: str = "q",
    failures: int = 0,
) -> Trajectory:
    """Return a rollout of two turns with one call between them."""
    segments = (policy(f"look</think>{call(box)}<|im_end|>"), *after_call("7"))
    stats = RolloutStats(tool_calls=1, tool_failures=failures)
    return Trajectory(
        question, rollout, encode(PROMPT), segments, EndReason.ANSWERED, "7", reward, stats=stats
    )


def resample(source: Trajectory, forks: Sequence[tuple[Sequence[float], float, int]]) -> Resample:
    """Return continuations of `source` from its first call.

    Args:
        source: the rollout.
        forks: of each continuation the box it asks for, its reward, and the cached tokens of its
            prompt of 100.
    """
    (point,) = FirstCall().points(source, TOKENS)
    cut = point.prefix_tokens
    continuations = []
    for k, (box, reward, cached) in enumerate(forks):
        stats = RolloutStats(prompt_tokens=100, cached_tokens=cached, tool_calls=1)
        fork = ForkPoint(source.rollout, k, cut)
        continuations.append(_continuation(source, cut, box, reward, fork, stats))
    return Resample(source.rollout, cut, tuple(continuations))


def _continuation(
    source: Trajectory,
    cut: int,
    box: Sequence[float],
    reward: float,
    fork: ForkPoint,
    stats: RolloutStats,
) -> Trajectory:
    prefix = PolicySegment(source.response_ids[:cut], source.logprobs[:cut], policy_version=3)
    rest = policy(call(box).removeprefix("<tool_call>") + "<|im_end|>")
    segments = (prefix, rest, *after_call("7"))
    return Trajectory(
        question_id=source.question_id,
        rollout=source.rollout,
        prompt_ids=source.prompt_ids,
        segments=segments,
        end=EndReason.ANSWERED,
        answer="7",
        reward=reward,
        fork=fork,
        stats=stats,
    )


def group(
    rollouts: Sequence[Trajectory], resamples: Sequence[Resample] = (), question: str = "q"
) -> Group:
    asked = Question(question, f"Which digit is {question}?", (QUESTION_IMAGE,), "7")
    return Group(asked, tuple(rollouts), 0, tuple(resamples))
