"""Values whose many small arrays travel as one."""

import pickle

import numpy as np

from rollout_workers.joined import ALIGNMENT, Joined
from rollout_workers.trajectory import Group, PolicySegment, Resample
from tests.axpo.helpers import direct, group, zooming


def sent(value):
    """Return what a receiver has of a value, and the buffers that travelled beside the pickle."""
    buffers = []
    data = pickle.dumps(Joined(value), protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=buffers), buffers


def test_a_value_arrives_as_it_was_and_its_arrays_as_one():
    value = {
        "segments": [
            PolicySegment(np.arange(n, dtype=np.int32), np.full(n, -0.5, np.float32), 7)
            for n in (0, 1, 5, 300)
        ],
        "mask": np.array([[True, False, True]]),
        "text": "no array",
    }
    received, buffers = sent(value)
    assert len(buffers) == 1
    assert (received["text"], received["mask"].tolist()) == ("no array", [[True, False, True]])
    for before, after in zip(value["segments"], received["segments"], strict=True):
        assert (after.policy_version, after.token_ids.dtype, after.logprobs.dtype) == (
            *(7, np.int32),
            np.float32,
        )
        assert np.array_equal(before.token_ids, after.token_ids)
        assert np.array_equal(before.logprobs, after.logprobs)


def test_the_arrays_are_aligned_and_cannot_be_changed():
    received, (buffer,) = sent([np.ones(3, np.bool_), np.ones(5, np.float64), np.ones(2)])
    start = np.frombuffer(buffer.raw(), np.uint8).ctypes.data
    assert [(array.ctypes.data - start) % ALIGNMENT for array in received] == [0, 0, 0]
    assert not any(array.flags.writeable for array in received)


def test_an_array_that_is_shared_is_sent_once():
    array = np.arange(1_000)
    received, (buffer,) = sent([array, array])
    assert received[0] is received[1]
    assert len(buffer.raw()) < 2 * array.nbytes


def test_a_value_without_arrays_is_sent():
    assert sent({"a": [1, None]})[0] == {"a": [1, None]}


def test_a_group_and_its_resamples_travel_with_one_array():
    continuation = zooming(1, 1.0)
    resample = Resample(1, 3, (continuation,))
    before = group([direct(0, 1.0), zooming(1, 0.0)], [resample])
    buffers = []
    data = pickle.dumps([before, resample], protocol=5, buffer_callback=buffers.append)
    after, alone = pickle.loads(data, buffers=buffers)
    assert len(buffers) == 2
    assert (type(after), type(alone)) == (Group, Resample)
    assert (after.worker, after.rewards.tolist()) == (before.worker, [1.0, 0.0])
    for sent_one, received_one in zip(before.rollouts, after.rollouts, strict=True):
        assert np.array_equal(sent_one.response_ids, received_one.response_ids)
        assert np.array_equal(sent_one.logprobs, received_one.logprobs)
        assert all(map(np.array_equal, sent_one.images, received_one.images))
    assert alone.continuations[0].stats == continuation.stats
