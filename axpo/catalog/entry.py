"""What the catalog knows about one group: its numbers, its labels and its text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUESTION_KEPT = 400
"""Characters of a question's text in lists. The search knows all of it."""
TEXT_KEPT = 20_000
"""Characters of one rollout that can be searched."""

# Tokens of the chat template: nobody searches for them, and excerpts read better without.
_TEMPLATE = re.compile(r"<\|[a-z_]+\|>|</?(?:tool_call|tool_response|think)>")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One group as the catalog has it."""

    question: str
    family: str
    text: str
    answer: str
    image: str
    rollouts: int
    right: int
    reward: float
    forks: int
    recovered: int
    tokens: int


def entry_of(record: Record) -> Entry:
    """Return the numbers of a record that `axpo.record.forms.check_group` accepts."""
    question, rollouts = record["question"], record["rollouts"]
    rewards = [_reward(rollout) for rollout in rollouts]
    images = question["images"]
    return Entry(
        question=question["id"],
        family=question.get("family") or "",
        text=question["text"][:QUESTION_KEPT],
        answer=question["answer"][:QUESTION_KEPT],
        image=images[0] if images else "",
        rollouts=len(rollouts),
        right=sum(reward > 0 for reward in rewards),
        reward=sum(rewards) / len(rewards),
        forks=len(record["resamples"]),
        recovered=sum(_is_recovered(resample, rollouts) for resample in record["resamples"]),
        tokens=max(_policy_tokens(rollout) for rollout in rollouts),
    )


def labels_of(record: Record) -> set[tuple[str, str]]:
    """Return (kind, name) of each label: `tool` and `end`, of rollouts and of continuations."""
    labels = set()
    for trajectory in trajectories(record):
        labels.add(("end", trajectory["end"]))
        labels |= {("tool", tool) for tool in trajectory["stats"].get("tools", ())}
    return labels


def text_of(record: Record) -> str:
    """Return what can be searched: question, answer, and each rollout's own text."""
    question = record["question"]
    parts = [question["text"], question["answer"], question["id"]]
    for trajectory in trajectories(record):
        fork = trajectory["fork"]
        shared = fork["prefix_tokens"] if fork else 0
        parts.append(_text(trajectory["segments"], shared)[:TEXT_KEPT])
    return "\n".join(parts)


def trajectories(record: Record) -> Iterator[Record]:
    """Yield the rollouts of a group, then its continuations."""
    yield from record["rollouts"]
    for resample in record["resamples"]:
        yield from resample["continuations"]


def _text(segments: Sequence[Record], shared: int) -> str:
    """Return the text behind the first `shared` tokens, which are another rollout's."""
    position = 0
    texts = []
    for segment in segments:
        if position >= shared:
            texts.append(_written(segment))
        position += len(segment["token_ids"])
    return " ".join(_TEMPLATE.sub(" ", text).strip() for text in texts)


def _written(segment: Record) -> str:
    if segment["kind"] == "observation":
        return segment["text"]
    return "".join(segment["token_texts"])


def _is_recovered(resample: Record, rollouts: Sequence[Record]) -> bool:
    """Return whether a continuation is better than the source."""
    own = _reward(rollouts[resample["source"]])
    others = [_reward(continuation) for continuation in resample["continuations"]]
    return max(others, default=own) > own


def _reward(trajectory: Record) -> float:
    return trajectory["reward"] or 0.0


def _policy_tokens(trajectory: Record) -> int:
    policy = [segment for segment in trajectory["segments"] if segment["kind"] == "policy"]
    return sum(len(segment["token_ids"]) for segment in policy)
