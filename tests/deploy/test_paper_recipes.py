"""The recipes of the paper's run check, with data folders made of invented rows."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axpo.cli import app
from axpo.config import load_recipe
from tests.axpo.evaluation import invented
from tests.axpo.tasks import public_sets

ROOT = Path.cwd()
SIZES = ("2b", "4b", "8b")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with the benchmarks, the training sets, demonstrations and the report."""
    home = tmp_path_factory.mktemp("paper")
    invented.write(home / "benchmarks")
    public_sets.write(home / "data")
    (home / "data" / "sft").mkdir()
    chat = {
        "messages": [
            {"role": "user", "content": "<image>Which word is on the board?"},
            {"role": "assistant", "content": "I can read it.</think>\\boxed{word}"},
        ],
        "images": ["board.png"],
    }
    (home / "data" / "sft" / "board.png").write_bytes(public_sets.encoded("word"))
    (home / "data" / "sft" / "train.jsonl").write_text(json.dumps(chat))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        result = run("data", "decontaminate", "2b", "--against", "benchmarks")
    assert result.exit_code == 0, result.output
    return home


def run(*words: str):
    command = [
        str(ROOT / f"deploy/recipes/paper-{word}.yaml") if word in SIZES else word for word in words
    ]
    return CliRunner().invoke(app, command)


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_recipes_check(home, monkeypatch, size):
    monkeypatch.chdir(home)
    result = run("check", size)
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    assert f"ok paper-{size}" in result.output
    assert "set aside" not in result.output


def test_a_recipe_checks_with_a_model_folder_and_its_demonstrations(home, monkeypatch, thinking):
    monkeypatch.chdir(home)
    result = run("check", "2b", "--set", f"model={thinking}")
    assert result.exit_code == 0, f"{result.output} {result.exception}"


def test_without_the_report_nothing_starts(home, monkeypatch):
    monkeypatch.chdir(home)
    report = "task.families.deepeyes.task.train.without=none.jsonl"
    result = run("check", "2b", "--set", report)
    assert "none.jsonl: no such report; write it with: axpo data decontaminate" in str(
        result.exception
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_value_that_the_paper_gives_is_the_papers(size):
    recipe = load_recipe(ROOT / f"deploy/recipes/paper-{size}.yaml")
    assert recipe.algorithm == "axpo"
    assert recipe.model == f"Qwen/Qwen3-VL-{size.upper()}-Thinking"
    assert (recipe.rollout.n, recipe.rollout.max_turns) == (8, 3)
    resampler = recipe.resampler
    assert (resampler.k, resampler.budget.ratio, resampler.ranking.name) == (4, 0.25, "confidence")
    objective = recipe.learner.objective
    assert (objective.clip_low, objective.clip_high, recipe.learner.kl_beta) == (0.2, 0.4, 1e-3)
    assert list(recipe.tools.tools) == ["image_zoom_in", "python", "tavily-search"]
    assert recipe.evaluation.samples == 4
    assert recipe.sft is not None


@pytest.mark.parametrize("size", SIZES)
def test_every_line_with_a_value_says_whose_it_is(size):
    text = (ROOT / f"deploy/recipes/paper-{size}.yaml").read_text(encoding="utf-8")
    papers = set()
    for line in text.splitlines():
        value, _, comment = line.partition("  #")
        # A line that ends in a colon opens a section; its values follow.
        if value.startswith("#") or value.endswith(":"):
            continue
        assert "paper" in comment or "ours" in comment, line
        if "paper" in comment:
            papers.add(value.strip().partition(":")[0])
    assert papers == {
        *("algorithm", "model", "image_zoom_in", "python", "tavily-search", "evaluation"),
        *("n", "max_turns", "resampler", "objective", "kl_beta"),
    }
