"""Files that GitHub and package indices read agree with the project."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from axpo import __version__

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted(Path(".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(path):
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    names = [author["name"] for author in PROJECT["authors"]]
    assert [author["name"] for author in citation["authors"]] == names
    assert citation["references"][0]["url"] == PROJECT["urls"]["Paper"]


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_promised():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    commands = [step.get("run", "") for step in jobs["test"]["steps"]]
    assert commands[-1] == ".ci/run"
    promised = [
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"
    assert any("make docs" in step.get("run", "") for step in jobs["docs"]["steps"])


@pytest.mark.parametrize("form", [form for form in FORMS if form.stem != "config"], ids=str)
def test_an_issue_form_asks_by_fields_that_have_names(form):
    asked = read(form)
    assert {"name", "description", "body"} <= set(asked)
    ids = [field["id"] for field in asked["body"]]
    assert len(ids) == len(set(ids)) > 0
    assert all(field["attributes"]["label"] for field in asked["body"])
    for path in re.findall(r"\b(?:docs|deploy)/[\w./-]+\w", form.read_text(encoding="utf-8")):
        assert Path(path).exists(), path
