"""What each process did while a run started."""

from __future__ import annotations

import time

import pytest

from axpo import spans as noted
from axpo.spans import Span, process_start, span, spans
from axpo.training.start_timeline import lines, record


def test_a_block_is_noted_with_its_time_even_if_it_fails(monkeypatch):
    monkeypatch.setattr(noted, "_spans", [])
    with span("first"):
        time.sleep(0.01)
    with pytest.raises(ValueError, match="broken"), span("second"):
        raise ValueError("broken")
    before, first, second = spans()
    assert [before.what, first.what, second.what] == ["python", "first", "second"]
    assert before.start == pytest.approx(process_start(), abs=0.05)
    assert before.stop == first.start
    assert 0.01 <= first.stop - first.start < 5
    assert second.start >= first.stop


def test_this_process_was_started_before_now_and_not_long_ago():
    assert 0 < time.time() - process_start() < 24 * 3600


WORK = {
    "driver": [Span("imports", 100.2, 101.0), Span("ray", 101.0, 105.26)],
    "engine 0": [Span("imports", 106.0, 112.0), Span("engine", 112.0, 119.5)],
    "rank 0": [Span("model", 107.0, 116.0)],
}


def test_the_timeline_has_a_line_for_each_process():
    assert lines(WORK, since=100.0) == [
        "started in 19.5 s; what each process did, by the second:",
        "   driver    imports 0.2-1.0, ray 1.0-5.3",
        "   engine 0  imports 6.0-12.0, engine 12.0-19.5",
        "   rank 0    model 7.0-16.0",
    ]


def test_of_many_processes_of_a_kind_the_last_one_is_shown():
    many = {f"rank {i}": [Span("model", 100.0, 110.0 + (i == 3))] for i in range(8)}
    shown = lines({"driver": WORK["driver"], **many}, since=100.0)
    assert len(shown) == 3
    assert shown[2] == "   rank 3 (last of 8 ranks)  model 0.0-11.0"


def test_the_record_has_every_piece_of_work():
    rows = record(WORK, since=100.0)
    assert rows[0] == {"who": "driver", "what": "imports", "start": 0.2, "stop": 1.0}
    assert [row["who"] for row in rows] == ["driver", "driver", "engine 0", "engine 0", "rank 0"]
