"""Trajectories as JSON records and image files.

A run directory keeps them, the report shows them, and a replay trains on them. A record holds the
token ids, logprobs and decoded text of a trajectory. Its images are files named by their content,
so that the continuations of one prefix share one file.

Records for people round logprobs and keep large images as JPEG. Exact records, those with an
`ImageFolder(exact=True)`, do neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha1
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from axpo.plain_files import NotPlain, inside
from axpo.record.forms import check_group
from axpo.texts import one_line
from rollout_workers.images import fetched
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
from tool_server.images import ImageError, ImageLimits, decode

LOGPROB_DIGITS = 4
PNG_PIXELS = 256 * 256
"""Larger images are kept as JPEG: a PNG of one photograph takes about 0.3 s to write."""
CHARACTER_BYTES = 4
"""The longest UTF-8 character: no more tokens than this can share one."""

LIMITS = ImageLimits(formats=("PNG", "JPEG"), max_pixels=89_478_485, max_side=65_535)
"""Of the images of a run. They were within the recipe's limits when they were written."""

Decode = Callable[[Sequence[int]], str]


class Credited(Protocol):
    """What `learner.credit.TrainItem` knows about one trajectory of R response tokens."""

    @property
    def trajectory(self) -> Trajectory: ...
    @property
    def advantages(self) -> NDArray[np.float32]: ...  # [R]
    @property
    def mask(self) -> NDArray[np.bool_]: ...  # [R] True if the loss reads the advantage


class ImageFolder:
    """Image files named by their content: saving the same pixels twice keeps one file."""

    def __init__(self, folder: Path, *, exact: bool = False, root: Path | None = None) -> None:
        """Make the folder's keeper; nothing is written yet.

        Args:
            folder: of the files.
            exact: keep every image as PNG.
            root: no image is read from outside of it, whatever links there are. Default: `folder`.
        """
        self.folder, self.exact = folder, exact
        self._root = root or folder

    def save(self, image: Pixels) -> str:
        """Write an image unless it is there already, and return the file's name.

        Args:
            image: RGB pixels, shape [H, W, 3].
        """
        # PIL is slow to import, and most readers of a run do without it.
        from PIL import Image

        height, width, _ = image.shape
        # With the shape: an image of one colour has the same bytes in other shapes. Contiguous: a
        # crop may be a view of a larger image.
        content = f"{height}x{width}".encode() + np.ascontiguousarray(image).tobytes()
        as_png = self.exact or height * width <= PNG_PIXELS
        name = sha1(content).hexdigest()[:16] + (".png" if as_png else ".jpg")
        file = self.folder / name
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            # PNG has no quality and ignores it.
            Image.fromarray(image).save(file, quality=92)
        return name

    def load(self, name: str) -> Pixels:
        """Return the RGB pixels [H, W, 3] of a file: exact from PNG, close from JPEG.

        Raises:
            ValueError: it is no image of this folder.
        """
        try:
            file = inside(self.folder, name)
            inside(self._root, str(file))
            return decode(file, LIMITS)
        except (ImageError, NotPlain) as error:
            raise ValueError(f"image {one_line(name, 80)} {error}") from None


def group_to_json(
    group: Group, step: int, decode: Decode, images: ImageFolder, items: Sequence[Credited] = ()
) -> dict[str, Any]:
    """Return the record of one question with its rollouts and resamples.

    Args:
        group: the rollouts and resamples of the question.
        step: the training step that they belong to.
        decode: token ids to text.
        images: where the images go.
        items: the step's train items; they add the credit of each trajectory.
    """
    question = group.question
    credit = _credit(items, question)

    def record(trajectory: Trajectory) -> dict[str, Any]:
        own = credit.get((trajectory.rollout, trajectory.fork))
        return trajectory_to_json(trajectory, decode, images) | {"credit": own}

    resamples = []
    for resample in group.resamples:
        continuations = [record(trajectory) for trajectory in resample.continuations]
        resamples.append(
            {
                "source": resample.source,
                "prefix_tokens": resample.prefix_tokens,
                "continuations": continuations,
            }
        )
    return {
        "step": step,
        "worker": group.worker,
        "question": {
            "id": question.id,
            "text": question.text,
            "answer": question.answer,
            "images": [images.save(pixels(image)) for image in question.images],
        }
        | _labels(question),
        "prompt": decode(group.rollouts[0].prompt_ids.tolist()),
        "rollouts": [record(trajectory) for trajectory in group.rollouts],
        "resamples": resamples,
        "carried": list(group.carried),
    }


def completed(record: Mapping[str, Any], whole: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record of a group with what came of its carried forks.

    Args:
        record: of the group, made when the rest of it was trained.
        whole: by the ids of questions, records that have the resamples, and the credit of the
            carried sources alone.
    """
    late = whole.get(record["question"]["id"])
    if late is None or not record.get("carried"):
        return dict(record)
    pairs = zip(late["rollouts"], record["rollouts"], strict=True)
    # A rollout was trained now, or before.
    rollouts = [after if after["credit"] else before for after, before in pairs]
    return {**record, "rollouts": rollouts, "resamples": late["resamples"]}


def group_from_json(record: Mapping[str, Any], images: ImageFolder) -> Group:
    """Return the group of a record, without `question.info`: only the verifier reads it.

    Raises:
        ValueError: the record has another format, or an image of it cannot be read.
    """
    check_group(record)
    asked = record["question"]
    question_images = tuple(images.load(name) for name in asked["images"])
    question = Question(asked["id"], asked["text"], question_images, asked["answer"])
    resamples = tuple(_resample_from_json(row, images) for row in record["resamples"])
    rollouts = tuple(trajectory_from_json(row, images) for row in record["rollouts"])
    carried = tuple(record.get("carried", ()))
    return Group(question, rollouts, record["worker"], resamples, carried)


def trajectory_to_json(
    trajectory: Trajectory, decode: Decode, images: ImageFolder
) -> dict[str, Any]:
    """Return a record that `trajectory_from_json` reads back.

    Logprobs and entropies have 4 digits, or are exact if the images are.
    """
    return {
        "question_id": trajectory.question_id,
        "rollout": trajectory.rollout,
        "fork": asdict(trajectory.fork) if trajectory.fork else None,
        "end": trajectory.end.value,
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "stats": asdict(trajectory.stats),
        "prompt_ids": trajectory.prompt_ids.tolist(),
        "segments": [_segment_to_json(segment, decode, images) for segment in trajectory.segments],
    }


def trajectory_from_json(record: Mapping[str, Any], images: ImageFolder) -> Trajectory:
    """Return the trajectory of a record.

    Raises:
        KeyError: the record has another format.
        ValueError: the record has another format.
    """
    return Trajectory(
        question_id=record["question_id"],
        rollout=record["rollout"],
        prompt_ids=np.array(record["prompt_ids"], dtype=np.int32),
        segments=tuple(_segment_from_json(row, images) for row in record["segments"]),
        end=EndReason(record["end"]),
        answer=record["answer"],
        reward=record["reward"],
        fork=ForkPoint(**record["fork"]) if record["fork"] else None,
        stats=_stats_from_json(record["stats"]),
    )


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """Return the text that each token adds.

    If the bytes of one character are split over several tokens, the last of them has the character
    and the others have "".
    """
    texts: list[str] = []
    pending: list[int] = []
    last = len(ids) - 1
    for position, token in enumerate(ids):
        # Decoded with the tokens before it that had no text yet: the bytes of a part of a character
        # are no text.
        pending.append(token)
        text = decode(pending)
        cut_off = text.endswith("\N{REPLACEMENT CHARACTER}")
        if cut_off and len(pending) < CHARACTER_BYTES and position < last:
            texts.append("")
        else:
            texts.append(text)
            pending = []
    return texts


def _credit(
    items: Sequence[Credited], question: Question
) -> dict[tuple[int, ForkPoint | None], dict[str, Any]]:
    """Return the mean advantage and the trained tokens of each trained trajectory of a question."""
    credit = {}
    # The fork tells continuations from their source: a rollout's is None.
    for item in items:
        trajectory = item.trajectory
        if trajectory.question_id != question.id or not item.mask.any():
            continue
        credit[trajectory.rollout, trajectory.fork] = {
            "advantage": round(float(item.advantages[item.mask].mean()), 4),
            "tokens": int(item.mask.sum()),
        }
    return credit


def _labels(question: Question) -> dict[str, str]:
    """Return the family and the kind of a question, if its task names them."""
    found = {name: question.info.get(name) for name in ("family", "kind")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _resample_from_json(record: Mapping[str, Any], images: ImageFolder) -> Resample:
    continuations = tuple(trajectory_from_json(row, images) for row in record["continuations"])
    return Resample(record["source"], record["prefix_tokens"], continuations)


def _stats_from_json(record: Mapping[str, Any]) -> RolloutStats:
    # JSON has lists for what were tuples.
    tuples = {
        "tool_spans": tuple(tuple(span) for span in record.get("tool_spans", ())),
        "tools": tuple(record.get("tools", ())),
    }
    return RolloutStats(**{**record, **tuples})


def _segment_to_json(segment: Segment, decode: Decode, images: ImageFolder) -> dict[str, Any]:
    ids = segment.token_ids.tolist()
    if isinstance(segment, ObservationSegment):
        return {
            "kind": "observation",
            "text": decode(ids),
            "images": [images.save(image) for image in fetched(segment.images)],
            "token_ids": ids,
        }
    entropies = segment.entropies
    return {
        "kind": "policy",
        "text": decode(ids),
        "policy_version": segment.policy_version,
        "token_ids": ids,
        "token_texts": token_texts(ids, decode),
        "logprobs": _numbers(segment.logprobs, exact=images.exact),
        "entropies": None if entropies is None else _numbers(entropies, exact=images.exact),
    }


def _segment_from_json(record: Mapping[str, Any], images: ImageFolder) -> Segment:
    ids = np.array(record["token_ids"], dtype=np.int32)
    if record["kind"] == "observation":
        return ObservationSegment(ids, tuple(images.load(name) for name in record["images"]))
    logprobs = np.array(record["logprobs"], dtype=np.float32)
    entropies = record["entropies"]
    if entropies is not None:
        entropies = np.array(entropies, dtype=np.float32)
    return PolicySegment(ids, logprobs, record["policy_version"], entropies)


def _numbers(values: NDArray[np.float32], *, exact: bool) -> list[float]:
    numbers = [float(value) for value in values]
    return numbers if exact else [round(number, LOGPROB_DIGITS) for number in numbers]
