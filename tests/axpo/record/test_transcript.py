"""What the console shows is in axpo.log, and how the run ended."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.table import Table

from axpo.errors import AxpoError
from axpo.record.actor_logs import MAX_BYTES, ActorLogs
from axpo.record.transcript import Transcript

TIMED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.*)")


def lines(folder):
    return [TIMED.fullmatch(line)[1] for line in (folder / "axpo.log").read_text().splitlines()]


def test_the_log_has_all_that_was_printed_also_before_it_began(tmp_path):
    shown = io.StringIO()
    console = Transcript(file=shown, width=40)
    console.print("[yellow]warning[/] a row is bad")
    table = Table("step", "loss", box=None, pad_edge=False)
    table.add_row("1", "0.5")
    with console.written_to(tmp_path):
        console.print("step 1", markup=False)
        console.print(table)
        logging.getLogger("some.library").warning("disk is slow")
        console.note("only here")
    console.print("after it")
    assert lines(tmp_path) == [
        "warning a row is bad",
        "step 1",
        "step  loss",
        "1     0.5",
        "warning some.library: disk is slow",
        "only here",
    ]
    assert "only here" not in shown.getvalue()
    assert "warning some.library: disk is slow" in " ".join(shown.getvalue().split())


def test_a_resume_goes_on_in_the_same_file(tmp_path):
    for text in ("first", "second"):
        console = Transcript(file=io.StringIO())
        with console.written_to(tmp_path):
            console.print(text)
    assert lines(tmp_path) == ["first", "second"]


def test_the_log_says_how_a_run_ended_and_why(tmp_path):
    console = Transcript(file=io.StringIO())
    lost = AxpoError("an engine was lost")
    lost.__cause__ = RuntimeError("the engine's own words")
    with pytest.raises(AxpoError), console.written_to(tmp_path):
        raise lost
    found = lines(tmp_path)
    assert found == ["RuntimeError: the engine's own words", "error an engine was lost"]
    with pytest.raises(KeyError), console.written_to(tmp_path):
        raise KeyError("a bug")
    assert lines(tmp_path)[-1] == "KeyError: 'a bug'"
    with pytest.raises(KeyboardInterrupt), console.written_to(tmp_path):
        raise KeyboardInterrupt
    assert lines(tmp_path)[-1] == "ended by KeyboardInterrupt"


def test_nothing_in_the_log_moves_a_terminal(tmp_path):
    console = Transcript(file=io.StringIO())
    with console.written_to(tmp_path):
        console.print("a\x1b[2Jb\x07", markup=False)
    assert lines(tmp_path) == ["a\\x1b[2Jb"]


def test_a_link_in_place_of_a_log_is_refused_and_what_it_leads_to_is_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("axpo.log", "engine-0-10.0.0.2-7.log"):
        (tmp_path / name).symlink_to(mine)
    with (
        pytest.raises(AxpoError, match="is no regular file"),
        Transcript(file=io.StringIO()).written_to(tmp_path),
    ):
        pass
    with pytest.raises(AxpoError, match="is no regular file"):
        ActorLogs(tmp_path).write(batch(["loading"]))
    assert mine.read_text() == "mine"


def batch(lines, **who):
    return (
        {"actor_name": "engine-0", "ip": "10.0.0.2", "pid": 7, "is_err": True}
        | who
        | {"lines": lines}
    )


def test_what_actors_print_is_a_file_for_each_process(tmp_path):
    logs = ActorLogs(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
    logs.write(batch(["\x1b[36mloading\x1b[0m", "CUDA \x07error"]))
    logs.write(batch(["ready"], actor_name="rank-1", pid=8))
    logs.write(batch(["from nobody"], actor_name=None, pid="raylet", ip="../../etc"))
    logs.close()
    again = ActorLogs(tmp_path / "logs")
    again.write(batch(["later"]))
    again.close()
    found = {file.name: file.read_text() for file in (tmp_path / "logs").iterdir()}
    assert found == {
        "engine-0-10.0.0.2-7.log": "loading\nCUDA \\x07error\nlater\n",
        "rank-1-10.0.0.2-8.log": "ready\n",
        "raylet-.._.._etc.log": "from nobody\n",
    }


def test_a_file_takes_the_name_that_an_actor_gets_when_it_has_started(tmp_path):
    logs = ActorLogs(tmp_path)
    logs.write(batch(["loading"], actor_name="RolloutWorker"))
    logs.write(batch(["serving"]))
    logs.write(batch(["another process"], actor_name="RolloutWorker", pid=8))
    logs.write(batch(["scaling nothing"], actor_name=None, pid="autoscaler"))
    logs.close()
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {
        "engine-0-10.0.0.2-7.log": "loading\nserving\n",
        "RolloutWorker-10.0.0.2-8.log": "another process\n",
    }


def test_a_process_that_prints_for_days_fills_no_disk(tmp_path, monkeypatch):
    assert MAX_BYTES == 32 * 2**20
    monkeypatch.setattr("axpo.record.actor_logs.MAX_BYTES", 100)
    logs = ActorLogs(tmp_path)
    for number in range(100):
        logs.write(batch([f"line {number}"]))
    logs.close()
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {"engine-0-10.0.0.2-7.log", "engine-0-10.0.0.2-7.before.log"}
    assert max(sizes.values()) < 120
    assert "line 99" in (tmp_path / "engine-0-10.0.0.2-7.log").read_text()
