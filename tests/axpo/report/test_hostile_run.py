"""Run directories from elsewhere: what cannot be read is left out and said to be."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib

import pytest
from PIL import Image

from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from axpo.record.summary import write_summary
from axpo.report.page import render
from tests.axpo.helpers import decode, direct, group, resample, zooming
from tests.axpo.record.helpers import NUMBERS

STEP = "trajectories/step_0001.jsonl"


@pytest.fixture
def run(tmp_path):
    source = zooming(0, 0.0)
    forks = resample(source, [((0, 0, 9, 9), 1.0, 80), ((1, 1, 9, 9), 0.0, 80)])
    with RunDirectory.create("a", {"name": "toy"}, tmp_path) as made:
        made.log_metrics(1, {"pass1": 0.5, "tool/search/calls": 3.0})
        groups = [group([source, direct(1, 1.0)], [forks])]
        made.save_groups(1, groups, decode)
        made.save_rollouts(1, groups, decode)
        made.save_timeline(1, groups)
        write_summary(made.path, NUMBERS)
    return made.path


def change(file, edit):
    record = json.loads(file.read_text().splitlines()[0])
    edit(record)
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def put(*place):
    """Return an edit that puts a value at a place of a record."""
    *way, last, value = place

    def edit(record):
        for step in way:
            record = record[step]
        record[last] = value

    return edit


ROLLOUT = ("rollouts", 0)
DAMAGE = {
    "an absolute image": put("question", "images", ["/etc/hostname.png"]),
    "an image of another folder": put("question", "images", ["../../x.png"]),
    "a NUL in an image": put("question", "images", ["a\0.png"]),
    "another format": put("question", "images", ["a.eps"]),
    "an observation's image": put(*ROLLOUT, "segments", 1, "images", ["../x.png"]),
    "half a surrogate pair": put("question", "text", "\ud83d"),
    "a huge reward": put(*ROLLOUT, "reward", 1e308),
    "a text for a reward": put(*ROLLOUT, "reward", "right"),
    "a text of a number for a reward": put(*ROLLOUT, "reward", "0.5"),
    "a text of a number for a logprob": put(*ROLLOUT, "segments", 0, "logprobs", 0, "-1"),
    "a text of a number for a policy": put(*ROLLOUT, "segments", 0, "policy_version", "0"),
    "a text of a number for a time": put(*ROLLOUT, "stats", {"seconds": "1.5"}),
    "a huge logprob": put(*ROLLOUT, "segments", 0, "logprobs", 0, 1e308),
    "a step that is a text": put("step", "<script>"),
    "a missing list": lambda record: record.pop("resamples"),
    "an unknown end": put(*ROLLOUT, "end", "<b>"),
    "texts of another number": put(*ROLLOUT, "segments", 0, "token_texts", []),
    "a source that is not there": put("resamples", 0, "source", 7),
    "a prefix beyond the end": put("resamples", 0, "prefix_tokens", 10**6),
    "a continuation of another fork": put("resamples", 0, "continuations", 0, "fork", None),
    "a credit that is none": put(*ROLLOUT, "credit", {"advantage": "x", "tokens": 1}),
    "times that are none": put(*ROLLOUT, "stats", {"seconds": "long"}),
    "a negative token": put(*ROLLOUT, "prompt_ids", [-1]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_record_that_is_no_group_is_left_out_and_said_to_be(run, what):
    change(run / STEP, DAMAGE[what])
    html = render(run).read_text()
    assert html.count('<details class="group"') == 1
    assert "1 record of this run could not be read" in html
    assert "step_0001.jsonl, record 2: " in html


@pytest.mark.parametrize("what", DAMAGE)
def test_a_replay_leaves_out_the_same_records(run, what):
    change(run / "rollouts" / "step_0001.jsonl", DAMAGE[what])
    opened = RunDirectory.open(run)
    ((_, groups),) = opened.rollouts()
    assert (len(groups), len(opened.unreadable)) == (1, 1)
    assert "\n" not in opened.unreadable[0]


@pytest.mark.parametrize(
    "line", ["[1]", "7", "null", "[" * 100_000, '{"step": 1' + "0" * 5000 + "}", '{"a": ', "\0"]
)
@pytest.mark.parametrize("file", [STEP, "metrics.jsonl", "rollouts.jsonl", "events.jsonl"])
def test_lines_that_are_no_objects_are_no_rows(run, file, line):
    with (run / file).open("a") as lines:
        lines.write(line + "\n")
    assert render(run).exists()


def test_a_text_that_turns_the_direction_of_writing_turns_no_verdict(run):
    """A browser shows what follows U+202E from right to left, as far as its element is isolated."""
    change(run / STEP, put("question", "text", "what?\u202e"))
    html = render(run).read_text()
    assert "<b>what?\u202e</b>" in html
    rule = "b, span:not(.u), summary, dd, td { unicode-bidi: isolate; }"
    assert rule in html


@pytest.mark.parametrize("value", ["text", 1e308, -1e308, True, [1], {"a": 1}, None, float("inf")])
def test_metrics_that_are_no_numbers_are_not_drawn(run, value):
    names = ["pass1", "kl", "time/rollout", "use/x", "tool/x/calls", "tool/x/p99_s", "eval/pass1"]
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 2} | dict.fromkeys(names, value)) + "\n")
        lines.write(json.dumps({"step": value, "pass1": 0.5}) + "\n")
        lines.write(json.dumps({"step": 2, "use/\ud83d": 0.5}) + "\n")
        lines.write(json.dumps({"step": 3, "tool/search/calls": 1e-300}) + "\n")
        lines.write(json.dumps({"step": 3, "tool/search/deadline": 1e30}) + "\n")
    assert "Pass@1" in render(run).read_text()


@pytest.mark.parametrize("text", ["[]", "{}", '{"steps": "x"}', "no", "[" * 100_000])
def test_a_summary_that_is_none_is_an_error_in_one_line(run, text):
    (run / "summary.json").write_text(text)
    with pytest.raises(AxpoError, match=r"summary\.json: .*expected"):
        render(run)


BAR = {"question": "q", "rollout": 0, "fork": None, "start": 0, "stop": 1, "tools": []}


@pytest.mark.parametrize(
    "text", ["[]", "{}", json.dumps([BAR | {"worker": "0"}]), "[1]", "no", "[" * 100_000]
)
def test_a_timeline_that_is_none_is_left_out(run, text):
    (run / "timeline" / "step_0001.json").write_text(text)
    assert '<figure class="chart timeline">' not in render(run).read_text()


@pytest.mark.parametrize("text", ["[1]", "{", "a: *b", "text", "a: 1\na: 2", "a: !!bool x"])
def test_a_recipe_that_is_none_is_an_error_in_one_line(run, text):
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(AxpoError, match=r"recipe\.yaml: (not readable|expected)"):
        render(run)


def test_a_recipe_of_aliases_is_not_read(run):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    (run / "recipe.yaml").write_text("\n".join([*lines, "name: *h", "algorithm: *h"]))
    with pytest.raises(AxpoError, match=r"recipe\.yaml: not readable: more than 100,000 values"):
        render(run)


@pytest.mark.parametrize(
    "file", ["metrics.jsonl", STEP, "summary.json", "timeline/step_0001.json", "events.jsonl"]
)
def test_pipes_are_not_waited_for(run, file):
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    with pytest.raises(AxpoError, match="is no regular file"):
        render(run)


@pytest.mark.parametrize("name", ["report.html", "report.html.tmp"])
def test_a_report_is_written_through_no_link(run, tmp_path, name):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (run / name).symlink_to(mine)
    page = render(run)
    assert mine.read_text() == "mine"
    assert not page.is_symlink()
    assert "Pass@1" in page.read_text()


@pytest.mark.parametrize("file", ["recipe.yaml", "metrics.jsonl", STEP, "summary.json"])
def test_what_a_link_leads_to_is_not_shown(run, tmp_path, file):
    (run / file).rename(tmp_path / "mine")
    (run / file).symlink_to(tmp_path / "mine")
    with pytest.raises(AxpoError, match="is no regular file"):
        render(run)


@pytest.mark.parametrize("file", ["metrics.jsonl", "held_out.jsonl", "lock"])
def test_a_resume_writes_through_no_link(run, tmp_path, file):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (run / "summary.json").unlink()
    (run / file).unlink(missing_ok=True)
    (run / file).symlink_to(mine)

    def resume():
        with RunDirectory.resume(run)[0] as resumed:
            resumed.log_metrics(1, {"pass1": 0.5})
            resumed.log_held_out(1, {})

    with pytest.raises(AxpoError, match=f"{file}: is no regular file"):
        resume()
    assert mine.read_text() == "mine"


def bomb() -> bytes:
    """Return a PNG of 2 kB that says it has 10^10 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images_are_read_by_our_decoder_from_inside_the_run_only(run, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    folder = run / "trajectories" / "images"
    (file, *_) = sorted(folder.iterdir())
    other_format = io.BytesIO()
    Image.new("RGB", (8, 8)).save(other_format, "BMP")

    def shown() -> int:
        return render(run).read_text().count("is missing")

    before = shown()
    for content in (bomb(), other_format.getvalue(), b""):
        file.write_bytes(content)
        assert shown() > before
    file.unlink()
    file.symlink_to(secret)
    assert shown() > before
    file.unlink()
    os.mkfifo(file)
    assert shown() > before
    # The whole folder leads elsewhere.
    file.unlink()
    folder.rename(tmp_path / "images")
    folder.symlink_to(tmp_path / "images")
    secret.rename(tmp_path / "images" / file.name)
    assert 'href="data:' not in render(run).read_text()
