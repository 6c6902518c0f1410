"""Train items on their way to the ranks: with references instead of pixels.

The driver sends all items to every rank. What lies in Ray's object store by itself is fetched only
by the rank that shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import ray

from learner.credit import TrainItem
from rollout_workers.handing_over import with_images
from rollout_workers.images import StoredImage, ToolImage, digest_of, image_size
from rollout_workers.trajectory import Question, stored


def without_pixels(items: Sequence[TrainItem]) -> list[TrainItem]:
    """Return items whose images are all in Ray's object store.

    Those of rollouts are there already. Pixels come from files: of a replay, of demonstrations, of
    a checkpoint's unfinished batch. Equal images of tools are put there once.
    """
    questions: dict[int, Question] = {}
    images: dict[str, StoredImage] = {}

    def put(image: ToolImage) -> ToolImage:
        if isinstance(image, StoredImage):
            return image
        digest = digest_of(image)
        if digest not in images:
            images[digest] = StoredImage(digest, *image_size(image), 0, ray.put((image,)))
        return images[digest]

    sent = []
    for item in items:
        # The items of a question share one object.
        if id(item.question) not in questions:
            questions[id(item.question)] = stored(item.question)
        question = questions[id(item.question)]
        trajectory = with_images(item.trajectory, put)
        sent.append(replace(item, question=question, trajectory=trajectory))
    return sent
