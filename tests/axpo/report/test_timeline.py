"""The picture of a step's rollouts."""

from __future__ import annotations

from dataclasses import replace

from axpo.record.timeline import bars
from axpo.report.timeline import picture
from rollout_workers.trajectory import RolloutStats
from tests.axpo.helpers import direct, group, resample, zooming


def timed(trajectory, started, seconds, *spans):
    stats = RolloutStats(started=started, seconds=seconds, tool_spans=spans)
    return replace(trajectory, stats=stats)


def test_bars_are_in_order_of_their_starts_from_zero():
    source = timed(zooming(1, 0.0), 100.5, 2.0, (0.5, 1.25))
    made = resample(source, [((5, 5, 9, 9), 1.0, 9)])
    forks = replace(made, continuations=tuple(timed(c, 103.0, 1.0) for c in made.continuations))
    found = bars([group([timed(direct(0, 1.0), 100.0, 1.0), source], [forks])])
    assert [(bar["rollout"], bar["fork"], bar["start"], bar["stop"]) for bar in found] == [
        (0, None, 0.0, 1.0),
        (1, None, 0.5, 2.5),
        (1, 0, 3.0, 4.0),
    ]
    assert found[1]["tools"] == [[1.0, 1.75]]
    svg = picture(found, 7)
    assert svg.count('class="run"') == 2 + 1  # two rows and the key
    assert svg.count('class="fork"') == 1 + 1
    assert svg.count('class="tool"') == 1 + 1
    assert "Rollouts of step 7" in svg
    assert "4.0 s" in svg


def test_many_rows_are_thinned_out_and_none_is_no_picture():
    many = bars([group([timed(direct(i, 1.0), 100.0 + i, 1.0) for i in range(400)])])
    assert picture(many, 1).count("<g>") == 134  # every third
    assert picture(bars([group([direct(0, 1.0)])]), 1) == ""
