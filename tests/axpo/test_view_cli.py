"""The commands that show a run."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from axpo.cli import app
from axpo.errors import AxpoError
from tests.axpo.viewer.made_runs import write_run


def run(*arguments: object) -> str:
    # Errors of ours reach `main`, which prints them.
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    return result.output


def test_a_report_shows_what_is_asked_for(tmp_path):
    path = write_run(tmp_path, "a", steps=4)
    options = ("--show", "is:forked step:2..", "--groups", 2, "--order", "oldest")
    said = run("report", path, *options, "--cache", tmp_path / "cache")
    assert "report.html" in said
    html = (path / "report.html").read_text()
    assert "2 of the 3 groups that fit: is:forked step:2.. (oldest first)." in html
    assert html.count('<details class="group"') == 2


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path):
    path = write_run(tmp_path, "a", steps=1)
    for options in (("--order", "random"), ("--show", "is:nothing", "--cache", tmp_path)):
        with pytest.raises(AxpoError, match="expected one of"):
            run("report", path, *options)
    with pytest.raises(AxpoError, match="no run directory"):
        run("view", tmp_path / "a" / "trajectories")
