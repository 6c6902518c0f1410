"""Trajectories and their images, written and read back."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from axpo.record.forms import check_group
from axpo.record.records import (
    ImageFolder,
    group_to_json,
    token_texts,
    trajectory_from_json,
    trajectory_to_json,
)
from axpo.record.run import RunDirectory
from tests.axpo.helpers import CROP, decode, direct, group, resample, zooming


def test_a_trajectory_comes_back_from_its_record(tmp_path):
    images = ImageFolder(tmp_path)
    fork = resample(zooming(2, 0.0), [((0, 0, 500, 500), 1.0, 80)]).continuations[0]
    text = json.dumps(trajectory_to_json(fork, decode, images))
    back = trajectory_from_json(json.loads(text), images)
    assert back.response_ids.tolist() == fork.response_ids.tolist()
    assert back.policy_mask.tolist() == fork.policy_mask.tolist()
    np.testing.assert_allclose(back.logprobs, fork.logprobs, atol=5e-5)
    np.testing.assert_array_equal(back.images[0], CROP)
    assert (back.fork, back.end, back.reward) == (fork.fork, fork.end, fork.reward)
    assert (back.answer, back.stats) == (fork.answer, fork.stats)


def test_photographs_are_kept_as_jpeg_and_equal_images_once(tmp_path):
    images = ImageFolder(tmp_path)
    photo = np.tile(np.linspace(0, 255, 300).astype(np.uint8)[None, :, None], (300, 1, 3))
    assert images.save(photo).endswith(".jpg")
    assert np.abs(images.load(images.save(photo)).astype(int) - photo).max() < 16
    assert images.save(CROP) == images.save(CROP.copy())
    assert len(list(tmp_path.iterdir())) == 2


def test_kept_groups_are_the_resampled_ones_with_their_credit(tmp_path):
    source = zooming(0, 0.0)
    forks = resample(source, [((0, 0, 9, 9), 1.0, 80), ((1, 1, 9, 9), 0.0, 80)])
    forked = group([source, direct(1, 1.0)], [forks])
    other = group([direct(0, 1.0)], question="other")
    # The loss reads three tokens of the source; nobody else is trained.
    advantages, mask = np.full(40, 0.5, dtype=np.float32), np.arange(40) < 3
    item = SimpleNamespace(trajectory=source, advantages=advantages, mask=mask)
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.save_groups(7, [other, forked], decode, [item], limit=1)
        (record,) = run.groups(7)
    assert record["question"]["id"] == "q"
    credits = [trajectory["credit"] for trajectory in record["rollouts"]]
    assert credits == [{"advantage": 0.5, "tokens": 3}, None]
    (kept,) = record["resamples"]
    assert [continuation["fork"]["index"] for continuation in kept["continuations"]] == [0, 1]
    assert record["rollouts"][1]["segments"][0]["text"] == "look</think>7.<|im_end|>"


def test_the_bytes_of_one_character_count_for_its_last_token():
    data = "né!".encode()

    def decode_bytes(ids):
        return bytes(data[i] for i in ids).decode(errors="replace")

    assert token_texts(range(4), decode_bytes) == ["n", "", "é", "!"]


def test_rollouts_for_a_replay_are_exact(tmp_path):
    # Above the size that people get as JPEG.
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    source = zooming(1, 0.0)
    # Thirds have more digits than people get.
    first = replace(source.segments[0], logprobs=source.segments[0].logprobs / 3)
    source = replace(source, segments=(first, *source.segments[1:]))
    forks = resample(source, [((5, 5, 9, 9), 1.0, 9), ((6, 6, 9, 9), 0.0, 9)])
    made = group([direct(0, 1.0), source], [forks])
    made = replace(made, question=replace(made.question, images=(image,)), worker=3)
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.save_rollouts(2, [made], decode)
    ((step, (back,)),) = RunDirectory.open(run.path).rollouts()
    assert (step, back.worker, back.question.answer) == (2, 3, made.question.answer)
    assert np.array_equal(back.question.images[0], image)
    written = (*made.rollouts, *made.resamples[0].continuations)
    read = (*back.rollouts, *back.resamples[0].continuations)
    for a, b in zip(written, read, strict=True):
        assert np.array_equal(a.response_ids, b.response_ids)
        assert np.array_equal(a.logprobs, b.logprobs)
        assert (a.end, a.reward, a.fork, a.stats) == (b.end, b.reward, b.fork, b.stats)


def test_rollouts_for_a_replay_come_in_order_of_their_steps(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        for step in (10_000, 9_999):
            run.save_rollouts(step, [group([direct(0, 1.0)])], decode)
        assert [step for step, _ in run.rollouts()] == [9_999, 10_000]


def test_a_record_has_the_family_and_the_kind_that_its_task_names(tmp_path):
    asked = group([direct(0, 1.0)])
    named = replace(asked.question, info={"family": "charts", "kind": "bars", "row": 7})
    images = ImageFolder(tmp_path)
    record = group_to_json(replace(asked, question=named), 1, decode, images)
    assert (record["question"]["family"], record["question"]["kind"]) == ("charts", "bars")
    assert "row" not in record["question"]
    assert "family" not in group_to_json(asked, 1, decode, images)["question"]
    check_group(record)
