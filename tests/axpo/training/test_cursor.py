"""Where the questions of a run stand: what a checkpoint keeps of it, and a resume goes on from."""

import json
import time
from dataclasses import replace

import numpy as np

from axpo.record.ledger import Balance, balance
from axpo.training.cursor import Cursor, Kept, load_cursor
from learner.credit import credit
from resampler.history import History, PastBatch
from tests.axpo.helpers import TOKENS, direct, resample, zooming
from tests.axpo.helpers import group as make_group
from tests.axpo.training.local import (
    RIGHT_BOX,
    WRONG_BOX,
    Pool,
    ids,
    resampling,
    start,
    step_of,
)


def test_a_resume_goes_on_with_what_the_resampler_had_learned(tmp_path):
    budget = {"name": "adaptive", "ratio": 0.5, "target_recovery": 0.5, "target_cost_s": 9.0}
    adaptive = resampling(budget=budget, trigger={"name": "quantile", "quantile": 0.5})
    flow, _, _ = start(resampler=adaptive)
    for step in range(2):
        step_of(flow, step)
    cursor = flow.cursor
    cursor.save(tmp_path)
    restored = load_cursor(tmp_path)
    assert restored.history == cursor.history
    assert restored.history.recoveries == (True,) * 5
    assert [past.questions for past in restored.history.past] == [4, 4]
    again, _, _ = start(cursor=restored, resampler=adaptive)
    assert again.cursor.history == cursor.history
    # A checkpoint from before candidates had prices resumes without what was learned.
    (file,) = tmp_path.rglob("cursor.json")
    file.write_text(file.read_text().replace('"entries"', '"keys"'))
    assert load_cursor(tmp_path).history is None


def test_a_cursor_of_the_version_before_is_read(tmp_path):
    """The file as it was written before the resampler's history was one frozen dataclass."""
    past = {"questions": 4, "entries": [[0, 0.25, 1.0], [1, 0.5, 2.0]], "rewards": [0.0, 1.0]}
    history = {"recoveries": [True, False], "past": [past], "costs": [["search", 1.5]]}
    numbers = {"following": 8, "batch": 2, "pending": [3], "history": history}
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "cursor.json").write_text(json.dumps(numbers) + "\n")
    (folder / "groups.jsonl").write_text("")
    batch = PastBatch(4, ((0, 0.25, 1.0), (1, 0.5, 2.0)), (0.0, 1.0))
    learned = History((True, False), (batch,), (("search", 1.5),))
    assert load_cursor(tmp_path) == Cursor(8, 2, (3,), (), learned)


def test_a_resume_trains_on_what_was_finished_and_asks_again_what_was_under_way(tmp_path):
    flow, _, _ = start(Pool(seconds={2: 30.0}), max_staleness=1, algorithm="grpo")
    first = step_of(flow, 0)
    deadline = time.monotonic() + 10
    # Of the eight asked four are trained on, and one hangs.
    while len(flow.cursor.kept) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    cursor = flow.cursor
    flow.close()
    kept = [group.index for group in cursor.kept]
    assert (cursor.following, cursor.batch, cursor.pending) == (8, 2, (2,))
    assert sorted(ids(first) + kept) == [0, 1, 3, 4, 5, 6, 7]

    cursor.save(tmp_path)
    again, pool, events = start(cursor=load_cursor(tmp_path), max_staleness=1, algorithm="grpo")
    second = step_of(again, 1)
    # The kept groups were begun by version 0.
    old = {int(question): age for question, age in second.staleness.items() if age}
    assert old == dict.fromkeys(kept, 1)
    # The metrics of families read `info`.
    assert all(group.question.info for group in second.groups if int(group.question.id) in kept)
    third, fourth = step_of(again, 2), step_of(again, 3)
    assert sorted(ids(first) + ids(second) + ids(third) + ids(fourth)) == list(range(16))
    assert sorted(question for question, _ in pool.asked) == [2, *range(8, 16)]
    assert min(batch for _, batch in pool.asked) == 2  # no seed of an earlier batch again
    assert balance(events) == Balance(12, 12, 0, 0)


def test_a_kept_group_comes_back_exactly(tmp_path):
    source = zooming(1, 0.0, failures=1)
    # Log-probabilities that no short decimal fraction is.
    first = replace(source.segments[0], logprobs=source.segments[0].logprobs / 3)
    source = replace(source, segments=(first, *source.segments[1:]))
    forks = resample(source, [(RIGHT_BOX, 1.0, 9), (WRONG_BOX, 0.0, 9)])
    made = make_group([direct(0, 1.0), source], [forks])
    Cursor(5, 3, (4, 2), (Kept(7, 6, made),)).save(tmp_path)
    back = load_cursor(tmp_path)
    assert (back.following, back.batch, back.pending) == (5, 3, (4, 2))
    assert [(kept.index, kept.version) for kept in back.kept] == [(7, 6)]
    items, restored = credit([made], TOKENS), credit([back.kept[0].group], TOKENS)
    assert len(items) == 4  # the other rollout, the prefix, two continuations
    for a, b in zip(items, restored, strict=True):
        assert np.array_equal(a.advantages, b.advantages)
        assert np.array_equal(a.mask, b.mask)
        assert np.array_equal(a.trajectory.prompt_ids, b.trajectory.prompt_ids)
        assert np.array_equal(a.trajectory.response_ids, b.trajectory.response_ids)
        assert np.array_equal(a.trajectory.logprobs, b.trajectory.logprobs)
        assert all(map(np.array_equal, a.trajectory.images, b.trajectory.images))
        assert np.array_equal(a.question.images[0], b.question.images[0])
        assert (a.trajectory.stats, a.weight) == (b.trajectory.stats, b.weight)


def test_a_checkpoint_without_questions_has_no_cursor(tmp_path):
    assert load_cursor(tmp_path) is None
