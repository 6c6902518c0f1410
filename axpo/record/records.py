"""Trajectories as JSON records and image files: what a run directory keeps, the report shows and a replay trains on.

A record holds a trajectory's token ids, logprobs and decoded text; its images are files named by their content, so that the
forks of one prefix share one file. Records for people round logprobs and keep large images as JPEG; exact ones (an
`ImageFolder(exact=True)`) do neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha1
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    ObservationSegment,
    Pixels,
    PolicySegment,
    Question,
    Resample,
    RolloutStats,
    Segment,
    Trajectory,
    pixels,
)

LOGPROB_DIGITS = 4
PNG_PIXELS = 256 * 256
"""Larger images are kept as JPEG: a PNG of one photograph takes about 0.3 s to write."""

Decode = Callable[[Sequence[int]], str]


class Credited(Protocol):
    """What `learner.credit.TrainItem` knows about one trajectory."""

    @property
    def trajectory(self) -> Trajectory: ...
    @property
    def advantages(self) -> NDArray[np.float32]: ...  # [R]
    @property
    def mask(self) -> NDArray[np.bool_]: ...  # [R] True where the loss reads the advantage


class ImageFolder:
    """Images by content: saving the same pixels twice keeps one file."""

    def __init__(self, folder: Path, exact: bool = False) -> None:
        self.folder, self.exact = folder, exact

    def save(self, image: Pixels) -> str:
        """Write [H, W, 3] RGB pixels unless they are there already; returns the file's name."""
        from PIL import Image

        height, width, _ = image.shape
        digest = sha1(
            f"{height}x{width}".encode() + np.ascontiguousarray(image).tobytes()
        ).hexdigest()[:16]
        name = digest + (".png" if self.exact or height * width <= PNG_PIXELS else ".jpg")
        if not (self.folder / name).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(self.folder / name, quality=92)
        return name

    def load(self, name: str) -> Pixels:
        """[H, W, 3] RGB; exact for PNG, close for JPEG."""
        from PIL import Image

        with Image.open(self.folder / name) as image:
            return np.asarray(image.convert("RGB"))


def group_to_json(
    group: Group, step: int, decode: Decode, images: ImageFolder, items: Sequence[Credited] = ()
) -> dict[str, Any]:
    """One question with its rollouts and resamples. `items` are the step's train items: they add each trajectory's credit."""
    question = group.question
    credit = {
        (i.trajectory.rollout, i.trajectory.fork): {
            "advantage": round(float(i.advantages[i.mask].mean()), 4),
            "tokens": int(i.mask.sum()),
        }
        for i in items
        if i.trajectory.question_id == question.id and i.mask.any()
    }

    def record(trajectory: Trajectory) -> dict[str, Any]:
        return trajectory_to_json(trajectory, decode, images) | {
            "credit": credit.get((trajectory.rollout, trajectory.fork))
        }

    return {
        "step": step,
        "worker": group.worker,
        "question": {
            "id": question.id,
            "text": question.text,
            "answer": question.answer,
            "images": [images.save(pixels(image)) for image in question.images],
        },
        "prompt": decode(group.rollouts[0].prompt_ids.tolist()),
        "rollouts": [record(t) for t in group.rollouts],
        "resamples": [
            {
                "source": r.source,
                "prefix_tokens": r.prefix_tokens,
                "continuations": [record(t) for t in r.continuations],
            }
            for r in group.resamples
        ],
    }


def group_from_json(record: Mapping[str, Any], images: ImageFolder) -> Group:
    """The group of a record (`question.info` is the verifier's alone and is not kept). Raises as `trajectory_from_json`."""
    asked = record["question"]
    question = Question(
        asked["id"],
        asked["text"],
        tuple(images.load(name) for name in asked["images"]),
        asked["answer"],
    )
    resamples = tuple(
        Resample(
            r["source"],
            r["prefix_tokens"],
            tuple(trajectory_from_json(t, images) for t in r["continuations"]),
        )
        for r in record["resamples"]
    )
    return Group(
        question,
        tuple(trajectory_from_json(t, images) for t in record["rollouts"]),
        record["worker"],
        resamples,
    )


def trajectory_to_json(
    trajectory: Trajectory, decode: Decode, images: ImageFolder
) -> dict[str, Any]:
    """A record that `trajectory_from_json` reads back; logprobs and entropies to 4 digits, or exact where the images are."""
    return {
        "question_id": trajectory.question_id,
        "rollout": trajectory.rollout,
        "fork": asdict(trajectory.fork) if trajectory.fork else None,
        "end": trajectory.end.value,
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "stats": asdict(trajectory.stats),
        "prompt_ids": trajectory.prompt_ids.tolist(),
        "segments": [_segment_to_json(s, decode, images) for s in trajectory.segments],
    }


def trajectory_from_json(record: Mapping[str, Any], images: ImageFolder) -> Trajectory:
    """The trajectory of a record. Raises KeyError or ValueError on a record of another format."""
    return Trajectory(
        question_id=record["question_id"],
        rollout=record["rollout"],
        prompt_ids=np.array(record["prompt_ids"], dtype=np.int32),
        segments=tuple(_segment_from_json(s, images) for s in record["segments"]),
        end=EndReason(record["end"]),
        answer=record["answer"],
        reward=record["reward"],
        fork=ForkPoint(**record["fork"]) if record["fork"] else None,
        stats=_stats(record["stats"]),
    )


def _stats(record: Mapping[str, Any]) -> RolloutStats:
    lists = {
        "tool_spans": tuple(map(tuple, record.get("tool_spans", ()))),
        "tools": tuple(record.get("tools", ())),
    }
    return RolloutStats(**{**record, **lists})


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text each token adds; bytes of one character split over tokens count for the last of them."""
    texts: list[str] = []
    pending: list[int] = []
    for position, token in enumerate(ids):
        pending.append(token)
        text = decode(pending)
        if (
            text.endswith("\N{REPLACEMENT CHARACTER}")
            and len(pending) < 4
            and position + 1 < len(ids)
        ):
            texts.append("")
        else:
            texts.append(text)
            pending = []
    return texts


def _segment_to_json(segment: Segment, decode: Decode, images: ImageFolder) -> dict[str, Any]:
    ids = segment.token_ids.tolist()
    if isinstance(segment, ObservationSegment):
        return {
            "kind": "observation",
            "text": decode(ids),
            "images": [images.save(i) for i in segment.images],
            "token_ids": ids,
        }
    return {
        "kind": "policy",
        "text": decode(ids),
        "policy_version": segment.policy_version,
        "token_ids": ids,
        "token_texts": token_texts(ids, decode),
        "logprobs": _numbers(segment.logprobs, images.exact),
        "entropies": None
        if segment.entropies is None
        else _numbers(segment.entropies, images.exact),
    }


def _segment_from_json(record: Mapping[str, Any], images: ImageFolder) -> Segment:
    ids = np.array(record["token_ids"], dtype=np.int32)
    if record["kind"] == "observation":
        return ObservationSegment(ids, tuple(images.load(name) for name in record["images"]))
    entropies = (
        None if record["entropies"] is None else np.array(record["entropies"], dtype=np.float32)
    )
    return PolicySegment(
        ids, np.array(record["logprobs"], dtype=np.float32), record["policy_version"], entropies
    )


def _numbers(values: NDArray[np.float32], exact: bool) -> list[float]:
    return [float(v) if exact else round(float(v), LOGPROB_DIGITS) for v in values]
