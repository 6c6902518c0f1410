"""The catalog of a run: what is in it, what is found, and how it follows the files."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from dataclasses import replace

import pytest

from axpo.catalog.schema import UNUSED_DAYS, VERSION, catalog_file, delete, open_for_writing
from axpo.catalog.search import Catalog, Key
from axpo.catalog.wanted import Range, from_fields, parse
from axpo.errors import AxpoError
from axpo.record.ledger import Ledger
from axpo.record.run import RunDirectory
from rollout_workers.trajectory import EndReason, RolloutStats
from tests.axpo.helpers import decode, direct, group, policy, resample, zooming


def zoomed(rollout, reward, question="q"):
    stats = RolloutStats(tool_calls=1, tools=("image_zoom_in",))
    return replace(zooming(rollout, reward, question=question), stats=stats)


def said(rollout, reward, text, question="q"):
    segments = (policy(f"look</think>{text}<|im_end|>"),)
    return replace(direct(rollout, reward, question), segments=segments)


@pytest.fixture
def run(tmp_path):
    """Two steps and one evaluation; question `a` of step 2 was forked and recovered."""
    with RunDirectory.create("run", {"name": "toy"}, tmp_path) as made:
        source = zoomed(0, 0.0, "a")
        forks = resample(source, [((0, 0, 9, 9), 1.0, 80), ((1, 1, 9, 9), 0.0, 80)])
        lost = resample(zoomed(0, 0.0, "b"), [((0, 0, 9, 9), 0.0, 80)])
        late = replace(direct(1, 0.0, "c"), end=EndReason.OUT_OF_TOKENS, answer=None)
        first = [
            group([said(0, 1.0, "purple elephants", "c"), late], question="c"),
            group([direct(0, 1.0, "a"), direct(1, 1.0, "a")], question="a"),
        ]
        second = [
            group([source, direct(1, 1.0, "a")], [forks], question="a"),
            group([zoomed(0, 0.0, "b"), direct(1, 0.0, "b")], [lost], question="b"),
        ]
        made.save_groups(1, first, decode)
        made.save_groups(2, second, decode)
        made.save_held_out(2, [group([direct(0, 1.0, "h")], question="h")], decode)
        made.log_event("start", step=0)
        made.log_event("checkpoint", step=1)
        ledger = Ledger(made.path / "rollouts.jsonl")
        ledger.log("dispatched", question="a", batch=0)
        ledger.log("unusable", question="z", reason="row 3: no image")
        ledger.log("dropped", question="d", step=1, reason="infrastructure")
        ledger.log("dropped", question="e", step=1, reason="infrastructure")
    return made.path


@pytest.fixture
def catalog(run, tmp_path):
    made = Catalog(run, tmp_path / "cache")
    made.update()
    return made


QUESTIONS = {
    "": ["h", "a", "b", "c", "a"],
    "source:training": ["a", "b", "c", "a"],
    "source:held-out": ["h"],
    "step:1": ["c", "a"],
    "step:2..": ["h", "a", "b"],
    "step:..1": ["c", "a"],
    "step:>1 source:training": ["a", "b"],
    "question:a": ["a", "a"],
    "question:a*": ["a", "a"],
    "is:forked": ["a", "b"],
    "is:recovered": ["a"],
    "is:lost": ["b"],
    "is:forked is:mixed": ["a"],
    "is:wrong": ["b"],
    "is:right step:1": ["a"],
    "tool:image_zoom_in": ["a", "b"],
    "tool:nothing": [],
    "end:out_of_tokens": ["c"],
    "reward:0.5": ["a", "c"],
    "reward:<0.5": ["b"],
    "purple": ["c"],
    "PURP": ["c"],
    '"purple elephants"': ["c"],
    '"elephants purple"': [],
    "elephants purple": ["c"],
    "purple step:2": [],
    # Operators of the full-text search are words like others.
    "purple OR digit": [],
    "purple NOT elephants": [],
    'purple AND "': [],
    "*": ["h", "a", "b", "c", "a"],
    "purple* -": ["c"],
    "body:purple": [],
    "bbox_2d": ["a", "b"],
    # What an address or a terminal may hold.
    "purple\0elephants": ["c"],
    '"purple\0elephants"': ["c"],
    "question:\udcff": [],
}


@pytest.mark.parametrize("typed", QUESTIONS)
def test_filters_find(catalog, typed):
    found = catalog.find(parse(typed))
    listed = [one.facts["question"] for one in found.groups]
    # Held-out groups of a step stand beside its training groups.
    assert sorted(listed) == sorted(QUESTIONS[typed])
    assert found.total == len(listed) == len(catalog.keys(parse(typed)))


def test_a_row_has_the_numbers_of_its_group(catalog):
    (one,) = catalog.find(parse("is:recovered")).groups
    assert one.key == Key("training", 2, 0)
    wanted = {"rollouts": 2, "right": 1, "reward": 0.5, "forks": 1, "recovered": 1}
    assert {name: one.facts[name] for name in wanted} == wanted
    source = zooming(0, 0.0, question="a")
    assert one.facts["tokens"] == int(source.policy_mask.sum())
    assert catalog.names() == {
        "tool": ["image_zoom_in"],
        "end": ["answered", "out_of_tokens"],
        "family": [],
    }
    assert catalog.record(one)["question"]["id"] == "a"
    assert catalog.get(Key("training", 2, 7)) is None


def test_orders_and_pages(catalog):
    def listed(order, **page):
        found = catalog.find(parse("source:training"), order, **page)
        return [(one.key.step, one.facts["question"]) for one in found.groups]

    assert listed("oldest") == [(1, "c"), (1, "a"), (2, "a"), (2, "b")]
    assert listed("newest", first=1, most=2) == [(2, "b"), (1, "c")]
    assert listed("worst")[0] == (2, "b")
    assert listed("best")[0] == (1, "a")
    assert listed("longest")[0] == (2, "a")


def test_an_excerpt_shows_where_the_words_stand(catalog):
    (one,) = catalog.find(parse("elephants")).groups
    assert "purple \x02elephants\x03" in one.excerpt


def test_what_was_not_ordinary_is_kept(catalog, run):
    counts = catalog.happened_counts()
    assert counts[0] == ("dropped", "infrastructure", 2)
    assert {name for name, _, _ in counts} == {"dropped", "unusable", "start"}
    assert catalog.reasons("rollouts.jsonl", "unusable") == ["row 3: no image"]
    Ledger(run / "rollouts.jsonl").log("worker lost", worker=1, why="died")
    with (run / "rollouts.jsonl").open("a") as lines:
        lines.write('{"t": 1, "event": "dropp')  # still being written
    catalog.update()
    assert ("worker lost", "died", 1) in catalog.happened_counts()
    assert len(catalog.happened()) == 5
    with (run / "rollouts.jsonl").open("a") as lines:
        lines.write('ed", "reason": "stale"}\n')
    catalog.update()
    assert ("dropped", "stale", 1) in catalog.happened_counts()
    assert len(catalog.happened()) == 6


@pytest.mark.parametrize(
    "time", ["NaN", "-Infinity", "1" + 400 * "0", '"0001-01-01"', "[]", "null"]
)
def test_an_event_without_a_time_is_kept(catalog, run, time):
    with (run / "events.jsonl").open("a") as lines:
        lines.write(f'{{"event": "odd", "time": {time}}}\n')
    catalog.update()
    (odd,) = [one for one in catalog.happened() if one.name == "odd"]
    assert odd.time == 0.0


def test_it_follows_new_changed_and_missing_files(catalog, run):
    writer = RunDirectory.open(run)
    old = catalog.find(parse("step:1")).groups[0]
    writer.save_groups(1, [group([said(0, 0.0, "green", "n")], question="n")], decode)
    writer.save_groups(3, [group([direct(0, 0.0, "m")], question="m")], decode)
    (run / "trajectories" / "step_0002.jsonl").unlink()
    with pytest.raises(AxpoError, match="has changed"):
        catalog.record(old)
    catalog.update()
    assert [key.step for key in catalog.keys(parse("source:training"))] == [3, 1]
    assert catalog.find(parse("green")).total == 1
    assert catalog.find(parse("purple")).total == 0
    assert catalog.find(parse("is:forked")).total == 0
    assert catalog.size() == (3, 3)


def test_a_record_that_is_no_group_is_left_out_and_said_to_be(catalog, run):
    file = run / "trajectories" / "step_0001.jsonl"
    broken = json.loads(file.read_text().splitlines()[0])
    broken["rollouts"][0]["segments"][0]["logprobs"] = "x"
    with file.open("a") as lines:
        lines.write(json.dumps(broken) + "\n[]\nno\n")
    catalog.update()
    (reason,) = catalog.unreadable()
    assert reason.startswith("trajectories/step_0001.jsonl, record 3: rollouts.0.segments.0")
    assert catalog.find(parse("step:1")).total == 2


def test_an_old_or_damaged_catalog_is_made_again(catalog, run):
    connection = open_for_writing(catalog.file)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    catalog.update()
    assert catalog.size() == (5, 3)
    catalog.file.write_bytes(b"no database" * 1000)
    catalog.update()
    assert catalog.size() == (5, 3)
    assert catalog.file.stat().st_mode & 0o077 == 0


def test_a_catalog_that_was_deleted_is_empty_until_the_run_is_read_again(catalog):
    delete(catalog.file)
    assert catalog.find(parse("")).total == 0
    assert catalog.size() == (0, 0)
    catalog.update()
    assert catalog.size() == (5, 3)


def test_a_catalog_that_cannot_be_written_is_an_error_and_keeps_nothing_half_done(catalog, run):
    with closing(open_for_writing(catalog.file)) as connection:
        connection.execute("DROP TABLE texts")
    Ledger(run / "rollouts.jsonl").log("worker lost", worker=1, why="died")
    RunDirectory.open(run).save_groups(3, [group([direct(0, 0.0, "m")], question="m")], decode)
    with pytest.raises(AxpoError, match=r"\.sqlite3: no such table: texts"):
        catalog.update()
    assert len(catalog.happened()) == 4
    assert catalog.size() == (5, 3)


def test_a_catalog_is_deleted_if_nobody_opens_it_for_long(run, tmp_path):
    used, unused = Catalog(run, tmp_path / "cache"), Catalog(tmp_path, tmp_path / "cache")
    used.update()
    unused.update()
    now = time.time()
    for catalog, days in ((used, UNUSED_DAYS - 1), (unused, UNUSED_DAYS + 1)):
        os.utime(catalog.file, (now, now - days * 86_400))
    used.update()
    assert not unused.file.exists()
    # Nothing was new in it, but it was used.
    assert used.file.stat().st_mtime > now - 60


def test_a_cache_folder_may_have_any_name(run, tmp_path):
    catalog = Catalog(run, tmp_path / "a?b#c%20d")
    catalog.update()
    assert catalog.size() == (5, 3)


def test_two_runs_have_two_files_and_links_lead_to_one(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    cache = tmp_path / "cache"
    assert catalog_file(tmp_path / "link", cache) == catalog_file(run, cache)
    assert catalog_file(tmp_path, cache) != catalog_file(run, cache)


@pytest.mark.parametrize(
    "typed", ["step:x", "reward:..y", "is:good", "length:nan", "step:>", "x" * 501]
)
def test_a_filter_without_such_a_value_is_an_error_in_one_line(typed):
    with pytest.raises(AxpoError, match="expected") as error:
        parse(typed)
    assert "\n" not in str(error.value)


def test_fields_of_a_form_are_filters():
    given = {
        "q": "red is:forked",
        "step": "3..",
        "tool": "zoom in",
        "end": "",
        "is": "wrong",
        "x": "1",
    }
    wanted = from_fields(given)
    assert (wanted.text, wanted.tool, wanted.step) == ("red", "zoom in", Range(3.0, None))
    assert wanted.properties == {"forked", "wrong"}
