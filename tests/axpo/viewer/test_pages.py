"""What the pages of the viewer say."""

from __future__ import annotations

import json
import os
import re

import pytest

from axpo.errors import AxpoError
from axpo.record.lock import RunLock, is_held
from axpo.record.run import RunDirectory
from axpo.viewer.watched import watch
from tests.axpo.helpers import decode
from tests.axpo.report.test_page import Page
from tests.axpo.viewer.conftest import client_of
from tests.axpo.viewer.made_runs import ADDRESSES, answered, write_run


def rows(html: str) -> list[str]:
    return re.findall(r'<a class="row" href="([^"]+)"', html)


@pytest.mark.parametrize("path", ADDRESSES)
def test_what_a_policy_wrote_is_text_on_every_page(client, path):
    html = client.get(path).text
    page = Page(html.replace("<!doctype html>", ""))
    assert page.open == []
    # One script: ours. Nothing that it said became a tag.
    assert [tag.get("src") for tag in page.having("script")] == ["/static/script.js"]
    assert page.having("style") == []
    handlers = [name for _, tag in page.tags for name in tag if name.startswith("on")]
    assert handlers == []
    links = [tag.get("href") or tag.get("src") or "" for _, tag in page.tags]
    assert not [link for link in links if "javascript:" in link]
    # Nor was its {{ 7 * 7 }} worked out.
    assert "onload=window.hacked=1&gt;49" not in html
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', html)
    assert not [address for address in addresses if address[:1] not in ("/", "?", "#")]


def test_several_runs_are_drawn_over_each_other(client):
    html = client.get("/").text
    assert "<h1>2 runs</h1>" in html
    (chart,) = re.findall(
        r'<figure class="chart"[^>]*>(?:(?!</figure>).)*<h3>Pass@1</h3>.*?</figure>', html
    )
    assert re.findall(r"</i>([^<]+) <b>", chart) == [
        "a: training",
        "a: held-out",
        "hostile: training",
        "hostile: held-out",
    ]
    colors = re.findall(r'stroke="var\(--s(\d)\)" class="line"', chart)
    assert colors == ["1", "1", "2", "2"]
    # Columns are drawn as their totals: 3 s a step, and the recipes differ in two fields.
    assert "<h3>Time by phase</h3>" in html
    assert re.findall(r"<code>([^<]+)</code>", html) == ["name", "learner.lr"]


def test_recipes_differ_also_in_the_ends_of_long_values(tmp_path, tmp_path_factory):
    folder = "/data/" + 50 * "x"
    for name in ("a", "b"):
        with RunDirectory.create(name, {"model": {"path": folder + name}}, tmp_path):
            pass
    html = client_of([tmp_path / "a", tmp_path / "b"], tmp_path_factory).get("/").text
    assert re.findall(r"<code>([^<]+)</code>", html) == ["model.path"]
    assert [end[-2:] for end in re.findall(r"<td>/data/x+ … (x+[ab])</td>", html)] == ["xa", "xb"]


def test_a_single_run_is_the_first_page(made_runs, tmp_path_factory):
    one = client_of([made_runs / "a"], tmp_path_factory)
    assert one.get("/").headers["location"] == "/r/0"
    html = one.get("/r/0").text
    assert 'class="state ended"' in html
    assert "30 groups kept" in html  # 12 steps of two, two evaluations of three
    assert re.findall(r'class="start">([\d.%]+) →</span> ([\d.%]+)<', html)[0] == ("50.0%", "75.0%")
    assert "/compare" not in html


def test_a_list_has_what_the_filters_say(client):
    assert len(rows(client.get("/r/0/groups").text)) == 30
    html = client.get("/r/0/groups?is=forked&step=3..5&order=oldest").text
    assert "3 groups" in html
    assert rows(html) == [
        f"/r/0/groups/training/{step}/0?step=3..5&amp;is=forked&amp;order=oldest"
        for step in (3, 4, 5)
    ]
    assert "No group fits." in client.get("/r/0/groups?q=nothing").text
    assert "step:x: expected a number" in client.get("/r/0/groups?step=x").text.replace("&#39;", "")
    found = client.get("/r/0/groups?q=seven+source:held-out").text
    assert "6 groups" in found
    assert "<mark>seven</mark>" in found
    assert "/r/0/groups/held-out/12/2" in found


def test_a_long_list_has_pages(tmp_path, tmp_path_factory):
    path = write_run(tmp_path, "long", steps=45)
    one = client_of([path], tmp_path_factory)
    first = one.get("/r/0/groups").text
    assert "96 groups, page 1 of 3" in first
    assert len(rows(first)) == 40
    assert len(rows(one.get("/r/0/groups?page=3").text)) == 16
    for odd in ("0", "-1", "x", "9" * 30, "99"):
        assert one.get(f"/r/0/groups?page={odd}").status_code == 200


def test_a_group_is_a_tree_with_neighbours_and_numbers(client):
    html = client.get("/r/0/groups/training/3/0?is=forked").text
    assert html.count('class="tree"') == 1
    assert "1 of 1 prefixes recovered" in html
    assert re.findall(r'<rect data-key="[^"]*" class="([a-z ]+)"', html) == [
        "wrong",
        "right fork",
        "wrong fork",
    ]
    assert 'rel="prev" href="/r/0/groups/training/4/0?is=forked"' in html
    assert 'rel="next" href="/r/0/groups/training/2/0?is=forked"' in html
    assert "10 of 12" in html
    cells = re.findall(r'<tr><th scope="row">([^<]+)</th>', html)
    assert cells == [
        "Rollout 1",
        "Rollout 2",
        "Rollout 3",
        "Fork 1 of rollout 1",
        "Fork 2 of rollout 1",
    ]
    # The same question was asked by the other run.
    assert "/compare?left=0.training.3.0&amp;right=1.training.3.0" in html
    record = client.get("/r/0/groups/training/3/0/record.json")
    assert record.headers["content-disposition"].startswith("attachment")
    assert json.loads(record.text)["question"]["id"] == "train-3"


def test_held_out_questions_stand_side_by_side(client):
    html = client.get("/r/0/held-out").text
    assert "at step 0 and at step 12" in html
    # The most improved first: two of the three went from 0 to 2 of 2.
    assert re.findall(r"(\d of \d) →.*?(\d of \d) right", html) == [
        ("0 of 2", "2 of 2"),
        ("0 of 2", "2 of 2"),
        ("0 of 2", "1 of 2"),
    ]
    first = rows(html)[0].replace("&amp;", "&")
    both = client.get(first).text
    assert both.count('<section aria-label="') == 2
    assert both.count("selected") == 2


def test_common_questions_are_listed_with_each_run(client):
    html = client.get("/compare").text
    assert html.count('class="row-link"') == 27
    assert "/compare?left=0.held-out.12.0&amp;right=1.held-out.12.0" in html


def test_a_timeline_goes_from_step_to_step(client):
    html = client.get("/r/0/timeline").text
    assert "Rollouts of step 12" in html
    assert 'rel="prev" href="?step=11"' in html
    assert 'rel="next"' not in html
    assert "Rollouts of step 4" in client.get("/r/0/timeline?step=4").text
    found = client.get("/r/0/trace.json?step=4")
    assert found.headers["content-disposition"] == 'attachment; filename="trace_4.json"'
    assert {event["ph"] for event in found.json()["traceEvents"]} >= {"X", "M"}
    assert "2.00" in html  # the slowest took 2 s


def test_faults_are_told(client):
    html = client.get("/r/0/faults").text
    assert "Set aside: 1 training question" in html
    assert "row 3: seven" in html
    assert "val.jsonl, row 2: images: none" in html
    assert "killed by signal 9" in html


@pytest.mark.parametrize(
    "path",
    [
        "/r/2",
        "/r/99999999999999",
        "/r/0/groups/training/99/0",
        "/r/0/groups/nothing/1/0",
        "/compare?left=0.training.1.0",
        "/compare?left=x&right=y",
        "/compare?left=7.training.1.0&right=0.training.1.0",
        "/r/0/image/..%2F..%2Frecipe.yaml",
        "/r/0/image/recipe.yaml",
        "/r/0/image/%00.png",
        "/r/x",
    ],
)
def test_what_is_not_there_is_said(client, path):
    assert client.get(path).status_code == 404


def test_images_are_encoded_again_and_kept_by_the_browser(client, made_runs):
    (name, *_) = sorted(os.listdir(made_runs / "a" / "trajectories" / "images"))
    answer = client.get(f"/r/0/image/{name}")
    assert answer.headers["content-type"] in ("image/png", "image/jpeg")
    assert "immutable" in answer.headers["cache-control"]
    small = client.get(f"/r/0/image/{name}?thumbnail=1")
    assert small.status_code == 200


def test_a_page_is_sent_again_only_if_it_is_new(tmp_path, tmp_path_factory):
    path = write_run(tmp_path, "live", steps=2, ended=False)
    one = client_of([path], tmp_path_factory)
    html = one.get("/r/0").text
    assert 'class="state running"' in html  # it wrote a moment ago
    assert "data-follow" in html
    seen = {"x-axpo-seen": re.findall(r'data-version="([^"]+)"', html)[0]}
    assert one.get("/r/0", headers=seen).status_code == 204
    RunDirectory.open(path).log_metrics(3, {"pass1": 0.875})
    news = one.get("/r/0", headers=seen)
    assert (news.status_code, "87.5%" in news.text) == (200, True)


def test_a_run_whose_groups_are_not_all_read_says_so(tmp_path, tmp_path_factory):
    path = write_run(tmp_path, "live", steps=2)
    one = client_of([path], tmp_path_factory)
    RunDirectory.open(path).save_groups(9, [answered("q", "x", (1.0,))], decode)
    assert "4 of 5 steps are in" in one.get("/r/0/groups").text


def test_a_held_lock_is_a_running_run(tmp_path):
    path = write_run(tmp_path, "old", steps=1, ended=False)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        os.utime(path / name, (0, 0))
    (run,) = watch([path], tmp_path / "cache")
    assert (run.state(), is_held(path)) == ("stopped", False)
    lock = RunLock(path)
    assert (run.state(), is_held(path)) == ("running", True)
    lock.release()
    assert run.state() == "stopped"


def test_a_folder_of_runs_stands_for_them(made_runs, tmp_path):
    found = watch([made_runs], tmp_path / "cache")
    assert sorted(run.name for run in found) == ["a", "hostile"]
    assert [run.index for run in found] == [0, 1]
    with pytest.raises(AxpoError, match="no run directory"):
        watch([tmp_path], tmp_path / "cache")


def test_nothing_is_written_into_a_run(client, made_runs):
    before = {path: path.stat().st_mtime_ns for path in made_runs.rglob("*")}
    for path in ADDRESSES:
        assert client.get(path).status_code == 200
    assert {path: path.stat().st_mtime_ns for path in made_runs.rglob("*")} == before


def test_a_reader_goes_from_one_held_out_question_to_the_next(client):
    html = client.get("/compare?left=0.held-out.0.1&right=0.held-out.12.1").text.replace(
        "&amp;", "&"
    )
    assert 'rel="prev" href="/compare?left=0.held-out.0.0&right=0.held-out.12.0"' in html
    assert 'rel="next" href="/compare?left=0.held-out.0.2&right=0.held-out.12.2"' in html
    assert 'rel="up" href="/r/0/held-out"' in html
    # Any two groups can stand side by side, also those of two questions.
    assert client.get("/compare?left=0.held-out.0.0&right=1.held-out.12.2").status_code == 200
    last = client.get("/compare?left=0.held-out.0.2&right=1.held-out.12.2").text
    assert 'rel="next"' not in last
    assert 'rel="up" href="/compare"' in last
    assert 'rel="prev"' not in client.get("/compare?left=0.training.3.0&right=0.training.4.0").text


def test_logs_are_shown_from_their_end_and_no_other_file_is(client, made_runs):
    html = client.get("/r/0/logs").text
    assert re.findall(r"<option(?: selected)?>([^<]+)</option>", html) == [
        "axpo.log",
        "logs/rank-0.log",
    ]
    assert "12:00:00 step 1 seven\n" in html
    end = client.get("/r/0/logs?file=logs/rank-0.log").text
    assert "The end of the file." in end
    assert "the last line" in end
    assert end.count("loaded") < 30_000
    for other in ("recipe.yaml", "../hostile/recipe.yaml", "/etc/hostname", "logs/../recipe.yaml"):
        page = client.get("/r/0/logs", params={"file": other}).text
        assert "algorithm" not in page
        assert "12:00:00" in page


def test_what_cannot_be_read_is_said_on_the_page(tmp_path, tmp_path_factory):
    path = write_run(tmp_path, "a", steps=1)
    (path / "summary.json").write_text("{}")
    page = client_of([path], tmp_path_factory).get("/r/0")
    assert (page.status_code, "<h1>Not readable</h1>" in page.text) == (500, True)
    assert "summary.json" in page.text


def test_a_log_that_leads_out_of_the_run_is_not_read(tmp_path, tmp_path_factory):
    path = write_run(tmp_path, "a", steps=1)
    secret = tmp_path / "secret"
    secret.write_text("never shown")
    (path / "axpo.log").unlink()
    (path / "axpo.log").symlink_to(secret)
    one = client_of([path], tmp_path_factory)
    html = one.get("/r/0/logs").text
    assert "never shown" not in html
    assert "leaves the folder" in html
