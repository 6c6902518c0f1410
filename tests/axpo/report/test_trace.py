"""The Chrome trace of a step's rollouts."""

from __future__ import annotations

import json

from axpo.report.trace import trace


def bar(question, rollout, start, stop, worker=0, fork=None, tools=()):
    return {
        "question": question,
        "rollout": rollout,
        "fork": fork,
        "worker": worker,
        "start": start,
        "stop": stop,
        "tools": [list(span) for span in tools],
        "reward": 1.0,
    }


def events(*bars, kind):
    found = json.loads(trace(bars, 3))["traceEvents"]
    return [event for event in found if event["ph"] == kind]


def test_a_rollout_is_a_slice_with_its_waits_for_tools_inside():
    (rollout, wait) = events(bar("q1", 2, 0.5, 2.0, tools=[(1.0, 1.75)]), kind="X")
    assert (rollout["name"], rollout["cat"]) == ("q1 · 2", "rollout")
    assert (rollout["ts"], rollout["dur"]) == (500_000, 1_500_000)
    assert (wait["cat"], wait["ts"], wait["dur"]) == ("tool", 1_000_000, 750_000)
    assert (wait["pid"], wait["tid"]) == (rollout["pid"], rollout["tid"])
    assert rollout["args"] == {"question": "q1", "rollout": 2, "fork": None, "reward": 1.0}


def test_rollouts_that_run_at_once_lie_in_rows_of_their_worker():
    bars = (
        bar("a", 0, 0.0, 2.0),
        bar("a", 1, 0.5, 1.0),
        bar("b", 0, 0.6, 3.0, worker=1),
        bar("a", 2, 1.0, 4.0),  # where rollout 1 has ended
        bar("a", 3, 1.5, 2.0),
    )
    slices = events(*bars, kind="X")
    assert [(one["pid"], one["tid"]) for one in slices] == [(0, 0), (0, 1), (1, 0), (0, 1), (0, 2)]
    names = events(*bars, kind="M")
    assert [one["args"]["name"] for one in names] == ["engine worker 0", "engine worker 1"]


def test_an_arrow_leads_from_a_source_to_each_continuation():
    bars = (
        bar("a", 1, 0.0, 2.0),
        bar("a", 1, 2.5, 3.0, fork=0),
        bar("a", 1, 2.5, 3.5, fork=1),
        bar("lost", 1, 2.5, 3.5, fork=0),  # its source was not timed
    )
    starts, ends = events(*bars, kind="s"), events(*bars, kind="f")
    assert [one["ts"] for one in starts] == [1_999_999] * 2
    assert [one["ts"] for one in ends] == [2_500_000] * 2
    assert [one["id"] for one in starts] == [one["id"] for one in ends]
    assert [(one["pid"], one["tid"]) for one in ends] == [(0, 0), (0, 1)]
