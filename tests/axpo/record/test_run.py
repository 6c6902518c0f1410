from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from axpo.errors import AxpoError
from axpo.record.records import ImageFolder, token_texts, trajectory_from_json, trajectory_to_json
from axpo.record.run import RunDirectory
from axpo.record.summary import duration, read_summary, write_summary
from axpo.training.progress import PhaseTimer, Progress, summary_table
from learner import manifest
from tests.axpo.helpers import CROP, decode, direct, group, resample, zooming

NUMBERS = {
    "pass1_start": 0.5,
    "pass1_end": 0.75,
    "pass4_start": 0.7,
    "pass4_end": 0.9,
    "tool_use_start": 0.3,
    "tool_use_end": 0.6,
    "steps": 20,
    "seconds": 425.0,
    "tokens": 123456,
}


def test_create_refuses_what_exists_and_leaves_it_alone(tmp_path):
    with RunDirectory.create("a", {"seed": 1}, tmp_path) as run:
        run.log_metrics(1, {"pass1": 0.5})
    with pytest.raises(AxpoError, match="a already exists") as error:
        RunDirectory.create("a", {"seed": 2}, tmp_path)
    assert "\n" not in str(error.value)
    assert RunDirectory.open(run.path).recipe() == {"seed": 1}
    assert RunDirectory.open(run.path).metrics() == [{"step": 1, "pass1": 0.5}]


@pytest.mark.parametrize("name", ["", "a/b", "..", "/abs"])
def test_create_refuses_names_that_leave_the_root(tmp_path, name):
    with pytest.raises(AxpoError, match="run name"):
        RunDirectory.create(name, {}, tmp_path)


def test_open_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(AxpoError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    with pytest.raises(AxpoError, match="in use by process"):
        RunDirectory.resume(run.path)
    assert RunDirectory.open(run.path).metrics() == []
    run.close()
    RunDirectory.resume(run.path)[0].close()


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = "import os, sys; from axpo.record.run import RunDirectory; RunDirectory.create('a', {}, sys.argv[1]); os.kill(os.getpid(), 9)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60
        ).returncode
        == -9
    )
    run, step = RunDirectory.resume(tmp_path / "a")
    run.close()
    assert step == 0


def test_resume_winds_back_to_the_last_complete_checkpoint(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    for step in (0, 1, 2, 3, 4, 5):
        run.log_metrics(step, {"pass1": step / 10})
        run.log_held_out(step, {"": [[4, step, 0, 0]]})
        run.save_groups(step, [group([direct(0, 1.0)])], decode)
    for step in (2, 4):
        checkpoint(run, step)
    run.checkpoints.path(5).with_name(".step_0005.partial").mkdir()
    run.checkpoints.path(5).with_name("notes").mkdir()
    with (run.path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "pass1": 0.')  # killed while writing
    run.close()

    resumed, step = RunDirectory.resume(run.path)
    assert step == 4
    assert resumed.checkpoints.latest() == (4, run.path / "checkpoints" / "step_0004")
    assert not run.checkpoints.path(5).with_name(".step_0005.partial").exists()
    assert run.checkpoints.path(5).with_name("notes").exists()
    assert resumed.group_steps() == [0, 1, 2, 3, 4]
    resumed.log_metrics(5, {"pass1": 0.9})
    resumed.log_held_out(5, {"": [[4, 0, 0, 0]]})
    resumed.close()
    assert [row["counts"][""][0][1] for row in resumed.held_out()] == [0, 1, 2, 3, 4, 0]
    assert [row["pass1"] for row in resumed.metrics()] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.9]
    assert all(json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines())


def checkpoint(run: RunDirectory, step: int) -> Path:
    """One of a single small file, written the way the learner writes its own."""
    folder = run.checkpoints.path(step)
    temporary = manifest.partial(folder)
    temporary.mkdir(parents=True)
    (temporary / "weights").write_bytes(f"weights of step {step}".encode())
    manifest.seal(folder, manifest.digests(temporary, manifest.files(temporary)), {"ranks": 1})
    return folder


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    run = RunDirectory.create("a", {}, tmp_path)
    for step in (1, 2):
        run.log_metrics(step, {"pass1": 0.5})
        checkpoint(run, step)
    run.close()
    weights = run.checkpoints.path(2) / "weights"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[3] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "missing":
        weights.unlink()
    else:
        (run.checkpoints.path(2) / "manifest.json").write_text('{"files"')
    resumed, step = RunDirectory.resume(run.path)
    assert step == 1
    assert ("manifest.json" if damage == "manifest" else "weights") in resumed.damaged[0]
    assert not run.checkpoints.path(2).exists()
    assert [row["step"] for row in resumed.metrics()] == [1]
    resumed.close()


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    for step, pass1 in enumerate([0.3, 0.8, 0.5, 0.8, 0.4, None, 0.6], 1):
        run.log_metrics(step, {} if pass1 is None else {"eval/pass1": pass1})
        checkpoint(run, step)
        run.prune_checkpoints(2)
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
        "step_0004",
        "step_0006",
        "step_0007",
    ]
    run.close()


def test_checkpoints_sort_by_number(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    for step in (9999, 10000):
        run.checkpoints.path(step).mkdir(parents=True)
    assert run.checkpoints.latest() == (10000, run.path / "checkpoints" / "step_10000")
    run.close()


def test_metrics_of_one_step_are_joined_and_stay_json(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.log_metrics(1, {"pass1": 0.5, "kl": float("nan"), "grad_norm": float("inf")})
        run.log_metrics(1, {"eval/pass1": np.float64(0.25)})
        assert run.metrics() == [
            {"step": 1, "pass1": 0.5, "kl": None, "grad_norm": None, "eval/pass1": 0.25}
        ]
        assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_summary_ends_a_run(tmp_path):
    ended = NUMBERS | {"algorithm": "axpo"}
    with RunDirectory.create("a", {}, tmp_path) as run:
        assert read_summary(run.path) is None
        assert write_summary(run.path, ended) == ended
    assert read_summary(run.path) == ended
    with pytest.raises(AxpoError, match="has ended"):
        RunDirectory.resume(run.path)
    with pytest.raises(AxpoError, match="has ended"):  # the refusal released the lock
        RunDirectory.resume(run.path)


def test_events_keep_their_order(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.log_event("start", seed=1)
        run.log_event("dropped_group", question="q", end="deadline")
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "dropped_group"]
    assert events[1]["question"] == "q"
    assert events[0]["time"].endswith("+00:00")


def test_a_trajectory_comes_back_from_its_record(tmp_path):
    images = ImageFolder(tmp_path)
    fork = resample(zooming(2, 0.0), [((0, 0, 500, 500), 1.0, 80)]).continuations[0]
    back = trajectory_from_json(
        json.loads(json.dumps(trajectory_to_json(fork, decode, images))), images
    )
    assert back.response_ids.tolist() == fork.response_ids.tolist()
    assert back.policy_mask.tolist() == fork.policy_mask.tolist()
    np.testing.assert_allclose(back.logprobs, fork.logprobs, atol=5e-5)
    np.testing.assert_array_equal(back.images[0], CROP)
    assert (back.fork, back.end, back.reward, back.answer, back.stats) == (
        fork.fork,
        fork.end,
        fork.reward,
        fork.answer,
        fork.stats,
    )


def test_photographs_are_kept_as_jpeg_and_equal_images_once(tmp_path):
    images = ImageFolder(tmp_path)
    photo = np.tile(np.linspace(0, 255, 300).astype(np.uint8)[None, :, None], (300, 1, 3))
    assert images.save(photo).endswith(".jpg")
    assert np.abs(images.load(images.save(photo)).astype(int) - photo).max() < 16
    assert images.save(CROP) == images.save(CROP.copy())
    assert len(list(tmp_path.iterdir())) == 2


def test_kept_groups_are_the_resampled_ones_with_their_credit(tmp_path):
    source = zooming(0, 0.0)
    forked = group(
        [source, direct(1, 1.0)],
        [resample(source, [((0, 0, 9, 9), 1.0, 80), ((1, 1, 9, 9), 0.0, 80)])],
    )
    item = SimpleNamespace(
        trajectory=source, advantages=np.full(40, 0.5, dtype=np.float32), mask=np.arange(40) < 3
    )
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.save_groups(
            7, [group([direct(0, 1.0)], question="other"), forked], decode, [item], limit=1
        )
        (record,) = run.groups(7)
    assert record["question"]["id"] == "q"
    assert [t["credit"] for t in record["rollouts"]] == [{"advantage": 0.5, "tokens": 3}, None]
    assert [t["fork"]["index"] for t in record["resamples"][0]["continuations"]] == [0, 1]
    assert record["rollouts"][1]["segments"][0]["text"] == "look</think>7.<|im_end|>"


def test_the_bytes_of_one_character_count_for_its_last_token():
    data = "né!".encode()
    assert token_texts(
        range(4), lambda ids: bytes(data[i] for i in ids).decode(errors="replace")
    ) == ["n", "", "é", "!"]


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
    with Progress(10, done=4, console=Console(file=out, width=40)) as progress:
        with progress.phase("rollout"):
            pass
        progress.step(
            5,
            {
                "pass1": 0.512,
                "tool_use_rate": 0.3,
                "tokens_per_second": 2345.6,
                "time/rollout": 4.25,
                "time/update": 1.5,
            },
        )
    (line,) = out.getvalue().splitlines()
    numbers = "pass@1 0.51  tool use 0.30  all wrong -  recovery -  tok/s 2,346"
    assert line.startswith(f"step 5/10  {numbers}  5.8 s (rollout 4.2, update 1.5)  eta 29 s")


def test_the_summary_shows_before_and_after(tmp_path):
    out = io.StringIO()
    Console(file=out, width=100).print(
        summary_table(NUMBERS, "demo", {"report": tmp_path / "report.html"})
    )
    text = " ".join(out.getvalue().split())
    for part in (
        "Pass@1 50.0% 75.0% +25.0 pts",
        "Tool use 30.0% 60.0% +30.0 pts",
        "20 steps, 7 min 5 s, 123,456 tokens",
        "report.html",
    ):
        assert part in text


def test_reading_a_run_imports_nothing_heavy():
    script = (
        "import sys, axpo.training.metrics, axpo.training.progress, axpo.report.page, axpo.record.run; "
        "print([m for m in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'PIL', 'jinja2') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        == "[]\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (7505, "2 h 5 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_rollouts_for_a_replay_are_exact(tmp_path):
    image = (
        np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8)
    )  # above the size that people get as JPEG
    source = zooming(1, 0.0)
    source = replace(
        source,
        segments=(
            replace(source.segments[0], logprobs=source.segments[0].logprobs / 3),
            *source.segments[1:],
        ),
    )
    made = group(
        [direct(0, 1.0), source],
        [resample(source, [((5, 5, 9, 9), 1.0, 9), ((6, 6, 9, 9), 0.0, 9)])],
    )
    made = replace(made, question=replace(made.question, images=(image,)), worker=3)
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.save_rollouts(2, [made], decode)
    ((step, (back,)),) = RunDirectory.open(run.path).rollouts()
    assert (step, back.worker, back.question.answer) == (2, 3, made.question.answer)
    assert np.array_equal(back.question.images[0], image)
    for a, b in zip(
        (*made.rollouts, *made.resamples[0].continuations),
        (*back.rollouts, *back.resamples[0].continuations),
        strict=True,
    ):
        assert np.array_equal(a.response_ids, b.response_ids)
        assert np.array_equal(a.logprobs, b.logprobs)
        assert (a.end, a.reward, a.fork, a.stats) == (b.end, b.reward, b.fork, b.stats)


def test_a_kill_between_save_and_rename_leaves_the_checkpoint_before_and_no_leftover(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from learner import manifest; from tests.axpo.record.test_run import checkpoint;"
        "from axpo.record.run import RunDirectory; run = RunDirectory.create('a', {}, sys.argv[1]); checkpoint(run, 1);"
        "Path.rename = lambda *_: os.kill(os.getpid(), 9); checkpoint(run, 2)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60
        ).returncode
        == -9
    )
    folder = tmp_path / "a" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [".step_0002.partial", "step_0001"]
    assert (
        folder / ".step_0002.partial" / "manifest.json"
    ).exists()  # all was written but the name
    run, step = RunDirectory.resume(tmp_path / "a")
    run.close()
    assert (step, run.damaged) == (1, [])
    assert [p.name for p in folder.iterdir()] == ["step_0001"]
