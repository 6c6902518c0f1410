"""A run of 1,000 steps and 16,000 groups: how long a reader waits."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from axpo.catalog.search import Catalog
from axpo.record.files import step_name
from axpo.record.records import group_to_json
from axpo.record.run import RunDirectory
from tests.axpo.helpers import decode, direct, group, policy
from tests.axpo.viewer.browser import launched, served, wait_for
from tests.axpo.viewer.made_runs import forked, numbers, photo

STEPS, GROUPS = 1000, 16
WORDS = [f"{start}{end}" for start in ("ba", "ke", "lo", "mu", "ni") for end in "bcdfghklmnprst"]
FILTERS = {
    "is:forked": STEPS * GROUPS // 4,
    "is:forked is:wrong": 0,
    "tool:image_zoom_in step:500..": 501 * GROUPS // 4,
    "reward:>0.9": 0,
    "length:>100": STEPS * GROUPS * 3 // 4,
    "look": STEPS * GROUPS,
    "question:train-777-*": GROUPS,
    "end:answered": STEPS * GROUPS,
}
"""What is typed, and how many groups it finds."""
PAGE_S, FILTER_S = 1.0, 0.3


def templates(run: RunDirectory) -> list[str]:
    """Four records as lines, with marks for the step, the question and two words."""
    text = "the square is red and ASKED stands beside it , so SAID must be right " * 8
    rollouts = []
    for number in range(8):
        segments = (policy(f"look</think>{text}<|im_end|>", 0.97),)
        rollouts.append(replace(direct(number, float(number % 2), "QUESTION"), segments=segments))
    plain = group(rollouts, question="QUESTION")
    plain = replace(plain, question=replace(plain.question, images=(photo(1),)))
    tree = replace(forked("QUESTION", 2), worker=0)
    made = [tree, plain, plain, plain]
    lines = [json.dumps(group_to_json(one, 4242, decode, run.images)) for one in made]
    return [line.replace('"step": 4242', '"step": STEP') for line in lines]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    with RunDirectory.create(
        "long", {"name": "long", "steps": STEPS}, tmp_path_factory.mktemp("l")
    ) as run:
        lines = templates(run)
        folder = run.path / "trajectories"
        rows = []
        for step in range(1, STEPS + 1):
            records = []
            for place in range(GROUPS):
                word = WORDS[(step * 7 + place) % len(WORDS)]
                record = lines[place % 4].replace("QUESTION", f"train-{step}-{place}")
                record = record.replace("ASKED", word).replace("SAID", word[::-1])
                records.append(record.replace("STEP", str(step)))
            (folder / f"{step_name(step)}.jsonl").write_text("\n".join(records) + "\n")
            rows.append(json.dumps({"step": step} | numbers(step)))
        (run.path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return run.path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nobody_waits_for_a_long_run(long_run, tmp_path_factory, record_property):
    cache = tmp_path_factory.mktemp("cache")
    measured = {}
    with launched() as browser, served(long_run, cache=cache) as url:
        page = browser.new_page()
        origin = url.split("/?")[0]
        # The catalog is still being made.
        measured["first page, nothing read"] = seconds(lambda: page.goto(url))
        begun = time.monotonic()
        measured["groups, while it is read"] = seconds(lambda: page.goto(f"{origin}/r/0/groups"))
        wait_until_read(long_run, cache)
        measured["reading the run"] = time.monotonic() - begun
        for path in ("/r/0", "/r/0/groups", "/r/0/groups/training/500/0", "/r/0/faults"):
            measured[path] = seconds(lambda path=path: page.goto(origin + path))
        page.goto(f"{origin}/r/0/groups")
        for typed, count in FILTERS.items():
            measured[typed] = filter_seconds(page, typed, count)
    for what, taken in measured.items():
        record_property(what, round(taken, 3))
        print(f"{what:<34} {taken:.3f} s")
    slow = {what: taken for what, taken in measured.items() if what in FILTERS and taken > FILTER_S}
    pages = [what for what in measured if what not in FILTERS and what != "reading the run"]
    slow |= {what: measured[what] for what in pages if measured[what] > PAGE_S}
    assert slow == {}


def seconds(act) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def wait_until_read(run, cache) -> None:
    """Wait until the viewer has read all groups."""
    catalog = Catalog(run, cache)
    deadline = time.monotonic() + 600
    while catalog.size()[0] < STEPS * GROUPS:
        assert time.monotonic() < deadline
        time.sleep(0.5)


FILL = """
([typed, count]) => new Promise((done) => {
  const field = document.getElementById("search"), begun = performance.now();
  const told = count === 1 ? "1 group" : count.toLocaleString("en-US") + " groups";
  const look = new MutationObserver(() => {
    const text = document.querySelector(".count")?.textContent ?? "";
    if (text.startsWith(told)) { look.disconnect(); done((performance.now() - begun) / 1000); }
  });
  look.observe(document.getElementById("main"), { childList: true, subtree: true });
  field.value = typed;
  field.dispatchEvent(new Event("input", { bubbles: true }));
})
"""


def filter_seconds(page, typed: str, count: int) -> float:
    """Return the seconds from a key to the list of what fits, in the browser."""
    page.fill("#search", "is:right question:none")
    wait_for(page, "document.querySelector('.count').textContent.startsWith('0 groups')")
    if count == 0:
        page.fill("#search", "")
        wait_for(page, "!document.querySelector('.count').textContent.startsWith('0 ')")
    return page.evaluate(FILL, [typed, count])
