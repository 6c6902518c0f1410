"""Questions in, batches out: synchronous and asynchronous, over a pool and a resampler without Ray. The event log must balance."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from axpo.config import parse_recipe
from axpo.record.ledger import Balance, balance
from axpo.training.cursor import Cursor, Kept, load_cursor
from axpo.training.flow import Flow
from learner.credit import credit
from resampler.config import ResamplerConfig
from rollout_workers.trajectory import EndReason, Question, Resample, RolloutStats
from tests.axpo.helpers import TOKENS, direct, resample, zooming
from tests.axpo.helpers import group as make_group
from tests.resampler.local import LocalResampler

WRONG_BOX, RIGHT_BOX = (0, 0, 1, 1), (5, 5, 9, 9)


class Pool:
    """Answers a question after `seconds[index]`; `broken` questions have a rollout without a reward, `easy` ones are answered right by
    all, `hard` ones by none."""

    def __init__(self, seconds=None, broken=(), buggy=(), easy=(), hard=()):
        self.seconds, self.broken, self.buggy, self.easy, self.hard = (
            seconds or {},
            broken,
            buggy,
            easy,
            hard,
        )
        self.asked = []  # (question, step) that the seeds of its rollouts derive from
        self.forks, self.in_flight, self.most = [], 0, 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def group(self, question, step):
        self.asked.append((int(question.id), step))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds.get(int(question.id), 0.01))
        finally:
            self.in_flight -= 1
        if int(question.id) in self.buggy:
            raise IndexError("a bug")
        first, others = (
            float(int(question.id) not in self.hard),
            float(int(question.id) in self.easy),
        )
        failed = None if int(question.id) in self.broken else others
        rollouts = [
            direct(0, first, question.id),
            zooming(1, others, WRONG_BOX, question.id),
            zooming(2, failed, WRONG_BOX, question.id),
        ]
        if failed is None:
            rollouts[2] = replace(
                rollouts[2],
                end=EndReason.VERIFIER_FAILURE,
                stats=RolloutStats(fault="KeyError: 'unit'"),
            )
        group = make_group(rollouts, question=question.id)
        return group, group

    async def fork(self, group, request, step):
        rollout, prefix_tokens = request.rollout, request.prefix_tokens
        self.forks.append((int(group.question.id), rollout, self.in_flight))
        source = group.rollouts[rollout]
        if request.min_distinct_calls > 1:  # all continuations call alike
            return Resample(rollout, prefix_tokens, ())
        made = resample(source, [(RIGHT_BOX, float(i == 0), 9) for i in range(request.k)])
        return (
            made
            if int(group.question.id) != 1
            else Resample(rollout, prefix_tokens, made.continuations[:-1])
        )


def local_resampler(recipe):
    return LocalResampler(recipe.resampler, TOKENS, recipe.rollout.n)


class Task:
    def train(self, index):
        return Question(str(index), "?", (), "7", {"kind": f"kind {index}"})


def recipe(**fields):
    return parse_recipe(
        {
            "name": "flow",
            "model": "axpo/models/qwen3-vl-tiny",
            "task": {"kind": "small_digit"},
            "steps": 4,
            "questions_per_step": 4,
            "rollout": {"n": 3, "engine": {"weight_transfer": "shared_memory"}},
            "resampler": {"k": 2, "budget": {"ratio": 0.5}, "schedule": "batch"},
        }
        | fields
    )


def start(pool=None, cursor=None, **fields):
    """Return (flow, its pool, its events)."""
    events, settings, pool = [], recipe(**fields), pool or Pool()

    def log(event, **values):
        events.append({"event": event} | values)

    flow = Flow(settings, Task(), pool, local_resampler(settings), log)
    if cursor is not None:
        flow.resume(cursor)
    return flow, pool, events


def ids(taken):
    return [int(g.question.id) for g in taken.groups]


def test_a_synchronous_batch_is_the_steps_questions_in_order_with_their_forks():
    flow, pool, events = start(Pool(seconds={1: 0.2}))
    for step in range(4):
        flow.feed(step)
        taken = flow.take(step)
        assert ids(taken) == list(range(4 * step, 4 * step + 4))
        assert set(taken.staleness.values()) == {0}
        # All four trigger; R = floor(0.5 * 4 * 3 / 2) * 2 = 6: three prefixes of two. Question 1's came back short: dropped whole.
        assert [len(g.resamples) for g in taken.groups] == (
            [1, 0, 1, 0] if step == 0 else [1, 1, 1, 0]
        )
        assert taken.forks_dropped == (1 if step == 0 else 0)
    assert balance(events) == Balance(16, 16, 0, 0)
    assert pool.most == 4


def test_grpo_forks_nothing():
    flow, pool, _ = start(algorithm="grpo")
    flow.feed(0)
    assert [g.resamples for g in flow.take(0).groups] == [()] * 4
    assert pool.forks == []


def test_prefixes_whose_continuations_call_alike_are_given_up_and_counted():
    flow, _, events = start(
        resampler={
            "k": 2,
            "budget": {"ratio": 0.5},
            "schedule": "batch",
            "min_distinct_calls": 2,
        }
    )
    flow.feed(0)
    taken = flow.take(0)
    assert ([g.resamples for g in taken.groups], taken.forks_collapsed, taken.forks_dropped) == (
        [()] * 4,
        3,
        0,
    )
    assert [e["event"] for e in events].count("fork collapsed") == 3


def test_what_prefixes_recover_reaches_the_next_budget():
    # Of step 0's three prefixes question 1's is dropped and the others recover: a rate of 1, so the budget stays three.
    flow, pool, _ = start(
        resampler={
            "k": 2,
            "budget": {"name": "adaptive", "ratio": 0.5, "target_recovery": 0.5},
            "schedule": "batch",
        }
    )
    for step in range(2):
        flow.feed(step)
        flow.take(step)
    assert len(pool.forks) == 6
    assert flow.cursor.history.recoveries == (True,) * 5


def test_a_resume_goes_on_with_what_the_resampler_had_learned(tmp_path):
    adaptive = {
        "k": 2,
        "budget": {
            "name": "adaptive",
            "ratio": 0.5,
            "target_recovery": 0.5,
            "target_cost_s": 9.0,
        },
        "schedule": "batch",
        "trigger": {"name": "quantile", "quantile": 0.5},
    }
    flow, _, _ = start(resampler=adaptive)
    run(flow, 2)
    cursor = flow.cursor
    cursor.save(tmp_path)
    restored = load_cursor(tmp_path)
    assert restored.history == cursor.history
    assert (restored.history.recoveries, [past.questions for past in restored.history.past]) == (
        (True,) * 5,
        [4, 4],
    )
    again, _, _ = start(cursor=restored, resampler=adaptive)
    assert again.cursor.history == cursor.history
    # A checkpoint from before candidates had prices resumes without what was learned.
    (file,) = tmp_path.rglob("cursor.json")
    file.write_text(file.read_text().replace('"entries"', '"keys"'))
    assert load_cursor(tmp_path).history is None


def test_streaming_forks_start_while_other_questions_still_generate():
    flow, pool, _ = start(
        Pool(seconds={0: 0.5}),
        resampler={"k": 2, "budget": {"ratio": 2.0}, "schedule": "streaming"},
    )
    flow.feed(0)
    flow.take(0)
    assert any(in_flight for question, _, in_flight in pool.forks if question)


def test_a_group_that_infrastructure_broke_is_dropped_and_the_budget_does_not_wait_for_it():
    flow, _, events = start(Pool(broken=(2,)))
    flow.feed(0)
    taken = flow.take(0)
    assert (ids(taken), taken.dropped, taken.verifier_failures) == ([0, 1, 3], 1, 1)
    assert balance(events) == Balance(4, 3, 1, 0)
    assert {
        "event": "verifier failed",
        "question": "2",
        "rollout": 2,
        "fault": "KeyError: 'unit'",
    } in events


def test_a_bug_is_raised():
    flow, _, _ = start(Pool(buggy=(1,), seconds={0: 30}))
    flow.feed(0)
    with pytest.raises(IndexError, match="a bug"):
        flow.take(0)
    flow.close()


def run(flow, steps, seconds=0.0):
    taken = []
    for step in range(steps):
        flow.feed(step)
        taken.append(flow.take(step))
        time.sleep(seconds)
    return taken


@pytest.mark.parametrize("bound", [1, 2])
def test_an_asynchronous_run_keeps_more_batches_under_way_and_no_group_is_older_than_the_bound(
    bound,
):
    rng = np.random.default_rng(bound)
    seconds = {i: float(rng.uniform(0, 0.05)) for i in range(32)}
    flow, pool, events = start(Pool(seconds=seconds), steps=8, max_staleness=bound)
    taken = run(flow, 8, 0.01)
    assert sorted(i for t in taken for i in ids(t)) == list(range(32))  # each exactly once
    assert max(age for t in taken for age in t.staleness.values()) == bound
    assert balance(events) == Balance(32, 32, 0, 0)
    assert pool.most == 4 * (bound + 1)


def test_a_straggler_is_waited_for_at_the_bound_and_not_before():
    flow, _, _ = start(Pool(seconds={0: 0.6}), max_staleness=1)
    begun = time.monotonic()
    flow.feed(0)
    first = flow.take(0)
    assert time.monotonic() - begun < 0.5
    assert 0 not in ids(first)
    flow.feed(1)
    second = flow.take(1)
    assert (0 in ids(second), second.staleness["0"]) == (True, 1)
    assert time.monotonic() - begun > 0.5


def test_or_it_is_dropped_counted_and_another_question_asked():
    flow, pool, events = start(Pool(seconds={0: 30}), max_staleness=1, stale="drop")
    taken = run(flow, 4)
    assert [t.stale for t in taken] == [0, 1, 0, 0]
    assert sorted(i for t in taken for i in ids(t)) == list(range(1, 17))
    assert balance(events) == Balance(17, 16, 1, 0)
    assert pool.in_flight == 0  # its rollouts were cancelled


def test_a_resume_trains_on_what_was_finished_and_asks_again_what_was_under_way(tmp_path):
    flow, _, _ = start(Pool(seconds={2: 30.0}), max_staleness=1, algorithm="grpo")
    flow.feed(0)
    taken, deadline = flow.take(0), time.monotonic() + 10
    while (
        len(flow.cursor.kept) < 3 and time.monotonic() < deadline
    ):  # of the eight asked: four are trained on, one hangs
        time.sleep(0.01)
    cursor = flow.cursor
    flow.close()
    kept = [k.index for k in cursor.kept]
    assert (cursor.following, cursor.batch, cursor.pending) == (8, 2, (2,))
    assert sorted(ids(taken) + kept) == [0, 1, 3, 4, 5, 6, 7]

    cursor.save(tmp_path)
    cursor = load_cursor(tmp_path)
    again, pool, events = start(cursor=cursor, max_staleness=1, algorithm="grpo")
    again.feed(1)
    second = again.take(1)
    assert {int(q): age for q, age in second.staleness.items() if age} == dict.fromkeys(
        kept, 1
    )  # begun by version 0
    assert all(
        g.question.info for g in second.groups if int(g.question.id) in kept
    )  # which the metrics of families read
    third, fourth = (again.feed(2), again.take(2))[1], (again.feed(3), again.take(3))[1]
    assert sorted(ids(taken) + ids(second) + ids(third) + ids(fourth)) == list(range(16))
    assert sorted(q for q, _ in pool.asked) == [2, *range(8, 16)]
    assert min(step for _, step in pool.asked) == 2  # no seed of an earlier batch again
    assert balance(events) == Balance(12, 12, 0, 0)


def test_a_kept_group_comes_back_exactly(tmp_path):
    source = zooming(1, 0.0, failures=1)
    source = replace(
        source,
        segments=(
            replace(source.segments[0], logprobs=source.segments[0].logprobs / 3),
            *source.segments[1:],
        ),
    )
    made = make_group(
        [direct(0, 1.0), source], [resample(source, [(RIGHT_BOX, 1.0, 9), (WRONG_BOX, 0.0, 9)])]
    )
    Cursor(5, 3, (4, 2), (Kept(7, 6, made),)).save(tmp_path)
    back = load_cursor(tmp_path)
    assert (back.following, back.batch, back.pending) == (5, 3, (4, 2))
    assert [(k.index, k.version) for k in back.kept] == [(7, 6)]
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


def test_dynamic_sampling_asks_other_questions_for_those_that_teach_nothing():
    # Round 1: 0-3, of which 1 (all right) and 2 (all wrong, not forked under grpo). Round 2: 4 and 5, of which 4. Round 3: 6.
    pool = Pool(easy=(1, 4), hard=(2,), seconds={0: 0.1, 5: 0.1})
    flow, _, events = start(pool, algorithm="grpo", dynamic_sampling=True)
    flow.feed(0)
    taken = flow.take(0)
    assert ids(taken) == [0, 3, 5, 6]
    assert [g.question.id for g in taken.uninformative] == ["1", "2", "4"]
    assert len(taken.finished) == 7
    assert sorted(pool.asked) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 2)]
    assert balance(events) == Balance(7, 4, 3, 0)
    assert {e["question"] for e in events if e.get("reason") == "uninformative"} == {"1", "2", "4"}


def test_a_failed_group_with_an_informative_resample_stays():
    # Both batches of four are all wrong; R = floor(0.5 * 4 * 3 / 2) * 2 = 6: three prefixes of two, of which question 1's came back short.
    flow, _, _ = start(Pool(hard=range(4)), dynamic_sampling=True)
    flow.feed(0)
    taken = flow.take(0)
    assert ids(taken) == [0, 2, 4, 5]
    assert [g.question.id for g in taken.uninformative] == ["1", "3"]


def test_dynamic_sampling_is_bounded():
    flow, _, _ = start(
        Pool(easy=range(100)), algorithm="grpo", dynamic_sampling=True, dynamic_sampling_factor=1.5
    )
    flow.feed(0)
    taken = flow.take(0)
    assert (ids(taken), len(taken.uninformative)) == ([], 10)  # its own four and 1.5 * 4 others
    flow.feed(1)
    assert flow.cursor.following == 14
    flow.close()


def test_without_dynamic_sampling_they_are_trained_on():
    flow, _, _ = start(Pool(easy=(1,), hard=(2,)), algorithm="grpo")
    flow.feed(0)
    taken = flow.take(0)
    assert (ids(taken), taken.uninformative) == ([0, 1, 2, 3], [])


def test_a_resume_between_steps_of_dynamic_sampling_asks_the_same_with_the_same_seeds(tmp_path):
    chosen = {"algorithm": "grpo", "dynamic_sampling": True}
    dull = {"easy": (1, 5, 6, 13), "hard": (2, 9)}
    whole, pool, _ = start(Pool(**dull), **chosen)
    expected = [ids(taken) for taken in run(whole, 3)]
    first, _, _ = start(Pool(**dull), **chosen)
    run(first, 1)
    first.cursor.save(tmp_path)
    again, other, _ = start(Pool(**dull), load_cursor(tmp_path), **chosen)
    for step in (1, 2):
        again.feed(step)
        assert ids(again.take(step)) == expected[step]
    assert sorted(other.asked) == sorted(pool.asked)[-len(other.asked) :]
    assert whole.cursor == again.cursor


def test_dynamic_sampling_keeps_the_staleness_bound():
    rng = np.random.default_rng(0)
    seconds = {i: float(rng.uniform(0, 0.03)) for i in range(200)}
    pool = Pool(seconds, easy=range(0, 200, 3))
    flow, _, events = start(pool, steps=8, max_staleness=1, algorithm="grpo", dynamic_sampling=True)
    taken = run(flow, 8)
    assert [len(t.groups) for t in taken] == [4] * 8
    assert max(age for t in taken for age in t.staleness.values()) <= 1
    trained = [int(g.question.id) for t in taken for g in t.groups]
    aside = [int(g.question.id) for t in taken for g in t.uninformative]
    assert all(i % 3 for i in trained)
    assert not any(i % 3 for i in aside)
    assert len(set(trained)) == 32
    balanced = balance(events)
    assert (balanced.trained, balanced.dropped) == (32, len(aside))


def test_the_config_refuses_what_cannot_be():
    assert ResamplerConfig().schedule.name == "streaming"
    with pytest.raises(Exception, match=r"max_staleness=1: must be 0 with rollout\.colocated"):
        recipe(
            max_staleness=1,
            rollout={"colocated": True, "engine": {"weight_transfer": "shared_memory"}},
        )
