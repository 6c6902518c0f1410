"""Items on their way to the ranks hold no pixels."""

import dataclasses

import numpy as np
import pytest

from learner.sending import without_pixels
from rollout_workers.images import StoredImage
from rollout_workers.trajectory import pixels
from tests.learner.test_batch import item

pytestmark = [pytest.mark.engine]


def test_pixels_are_put_into_the_object_store_once(cluster):
    question = item([1] * 7).question
    items = [dataclasses.replace(item([1] * 7, rollout=i), question=question) for i in range(3)]
    sent = without_pixels(items)
    # One object for the question's image, and one for the crop that all three rollouts show.
    assert len({one.question.images[0] for one in sent}) == 1
    crops = [image for one in sent for image in one.trajectory.images]
    assert len({crop.objects for crop in crops}) == 1
    assert sent[0].question.image_sizes == ((8, 16),)
    assert np.array_equal(pixels(sent[2].question.images[0]), np.full((8, 16, 3), 7))
    assert np.array_equal(pixels(crops[1]), np.full((8, 8, 3), 5))
    # What is there stays as it is.
    (again,) = without_pixels(sent[:1])
    assert again.question is sent[0].question
    assert again.trajectory.images == sent[0].trajectory.images
    assert isinstance(again.trajectory.images[0], StoredImage)
