"""The viewer on a run that was really trained: engine, learner, forks and evaluations."""

from __future__ import annotations

import subprocess
import sys

import pytest

from axpo.catalog.search import Catalog
from axpo.catalog.wanted import parse
from tests.axpo.viewer.browser import Watcher, launched, served, violations

SETTINGS = ("evaluation.every=1", "evaluation.start=true", "logging.held_out_kept=3")


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-m", "axpo.cli", "train", "deploy/recipes/debug.yaml"]
    for setting in (*SETTINGS, f"logging.root={root}"):
        command += ["--set", setting]
    subprocess.run([*command, "--run", "debug"], check=True, timeout=500)
    return root / "debug"


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_every_page_of_a_real_run_opens(real_run, tmp_path):
    catalog = Catalog(real_run, tmp_path / "cache")
    catalog.update()
    assert catalog.unreadable() == []
    assert catalog.steps("training") == [1, 2]
    assert catalog.steps("held-out") == [0, 1, 2]
    assert catalog.find(parse("source:held-out")).total == 9
    keys = [f"{key.source}/{key.step}/{key.place}" for key in catalog.keys(parse(""))]
    with launched() as browser, served(real_run, cache=tmp_path / "cache") as url:
        origin = url.split("/?")[0]
        page = browser.new_page()
        watcher = Watcher(page, origin)
        page.goto(url)
        assert page.locator(".charts .chart").count() > 8
        for path in (
            "groups",
            "held-out",
            "timeline",
            "faults",
            *(f"groups/{key}" for key in keys),
        ):
            page.goto(f"{origin}/r/0/{path}")
            assert violations(page) == [], path
        page.goto(f"{origin}/r/0/held-out")
        assert page.locator(".row").count() == 3
        page.click(".row >> nth=0")
        assert page.locator(".sides > section").count() == 2
        assert page.locator(".picture image").count() >= 2
        assert watcher.faults == []
