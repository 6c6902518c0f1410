"""The examples run as their page says, whole, on the real stack."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

AXPO = [sys.executable, "-m", "axpo.cli"]
PAGE = Path("examples/README.md").read_text(encoding="utf-8")


def recipe_of(name):
    """Return the recipe of an example, with the data that it needs."""
    recipe = f"examples/{name}/recipe.yaml"
    assert recipe in PAGE
    if name == "own_data":
        subprocess.run([sys.executable, "examples/own_data/rows.py"], check=True, timeout=60)
    return recipe


@pytest.mark.parametrize("name", ["own_data", "own_tool", "own_objective"])
def test_an_example_is_checked(name):
    command = [*AXPO, "check", recipe_of(name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


# Each trains for 50 s, mostly the start of engine and ranks.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_data", "own_tool", "own_objective"])
def test_an_example_trains_to_its_end(name, tmp_path):
    recipe = recipe_of(name)
    command = [*AXPO, "train", recipe, "--run", name, "--set", f"logging.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
    trained = [row for row in rows if row.get("trained_tokens")]
    assert len(trained) == 2
    assert (tmp_path / name / "report.html").exists()
    if name == "own_tool":
        recorded = (tmp_path / name / "recipe.yaml").read_text(encoding="utf-8")
        assert re.search(r"function: examples.own_tool.tools:invert", recorded)
