"""What a person sees while a run runs."""

from __future__ import annotations

import io
import re

from rich.console import Console

from axpo.record.transcript import Transcript
from axpo.training.progress import PhaseTimer, Progress, summary_table
from tests.axpo.record.helpers import NUMBERS


def test_a_second_counts_for_the_innermost_phase_only():
    now = [0.0]
    timer = PhaseTimer(clock=lambda: now[0])
    with timer.phase("rollout"):
        now[0] = 2.0
        with timer.phase("resample"):
            now[0] = 5.0
        now[0] = 6.0
    now[0] = 9.0
    assert timer.take() == {"time/rollout": 3.0, "time/resample": 3.0}
    assert timer.take() == {}


def test_a_job_log_gets_one_plain_line_a_step():
    out = io.StringIO()
    metrics = {
        "pass1": 0.512,
        "tool_use_rate": 0.3,
        "tokens_per_second": 2345.6,
        "end/out_of_tokens": 0.25,
        "groups_dropped": 2.0,
        "questions_unusable": 0.0,
        "time/rollout": 4.25,
        "time/update": 1.5,
    }
    with Progress(10, done=4, console=Console(file=out, width=40)) as progress:
        with progress.phase("rollout"):
            pass
        progress.step(5, metrics)
    (line,) = out.getvalue().splitlines()
    numbers = "pass@1 0.51  tool use 0.30  all wrong -  recovery -  tok/s 2,346"
    remarks = "out of tokens 0.25  dropped 2"  # and no word of what is zero
    seconds = "5.8 s (rollout 4.2, update 1.5)  eta 29 s"
    assert line == f"step 5/10  {numbers}  {remarks}  {seconds}"


def test_a_terminal_shows_the_last_steps_as_a_table_and_the_log_keeps_them_all(tmp_path):
    out = io.StringIO()
    console = Transcript(file=out, width=100, force_terminal=True)
    with console.written_to(tmp_path), Progress(20, console=console) as progress:
        for step in range(1, 13):
            progress.step(step, {"pass1": step / 20, "groups_dropped": float(step == 12)})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()
    last = shown[max(i for i, line in enumerate(shown) if line.startswith("step ")) :]
    assert last[0].split() == [
        *("step", "pass@1", "tool", "use", "all", "wrong", "recovery", "tok/s")
    ]
    assert [line.split()[:2] for line in last[1:9]] == [
        [f"{step}", f"{step / 20:.2f}"] for step in range(5, 13)
    ]
    assert last[8].split()[-2:] == ["dropped", "1"]
    kept = (tmp_path / "axpo.log").read_text().splitlines()
    assert [line.split()[2] for line in kept] == [f"{step}/20" for step in range(1, 13)]


def test_questions_that_are_set_aside_are_named_and_many_are_counted():
    out = io.StringIO()
    with Progress(10, console=Console(file=out, width=40)) as progress:
        progress.set_aside("question", ["a.jsonl, row 2: images: b.jpg cannot be read"])
        progress.set_aside("held-out question", [f"row {i}" for i in range(7)])
        progress.set_aside("question", [])
    assert out.getvalue().splitlines() == [
        "question set aside: a.jsonl, row 2: images: b.jpg cannot be read",
        *[f"held-out question set aside: row {i}" for i in range(5)],
        "2 more held-out questions set aside",
    ]


def test_no_reason_is_obeyed_by_the_terminal():
    out = io.StringIO()
    with Progress(10, console=Console(file=out, width=40)) as progress:
        progress.set_aside("question", ["row \x1b[2J\u202e[/red] :smile: x"])
    assert out.getvalue() == "question set aside: row \\x1b[2J\\u202e[/red] :smile: x\n"


def test_the_summary_shows_the_names_of_families_as_they_are():
    out = io.StringIO()
    numbers = NUMBERS | {"a[red]b\x1b[2J/pass1_start": 0.25, "a[red]b\x1b[2J/pass1_end": 0.5}
    Console(file=out, width=100).print(summary_table(numbers, "demo", {}))
    assert "a[red]b\\x1b[2J: Pass@1" in out.getvalue()


def test_the_summary_shows_before_and_after(tmp_path):
    out = io.StringIO()
    table = summary_table(NUMBERS, "demo", {"report": tmp_path / "report.html"})
    Console(file=out, width=100).print(table)
    text = " ".join(out.getvalue().split())
    for part in (
        "Pass@1 50.0% 75.0% +25.0 pts",
        "Tool use 30.0% 60.0% +30.0 pts",
        "20 steps, 7 min 5 s, 123,456 tokens",
        "report.html",
    ):
        assert part in text
