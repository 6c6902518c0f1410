"""Twenty commands that a newcomer mistypes: each is answered with what was meant."""

from __future__ import annotations

import pytest
import ray

from axpo import cli
from axpo.config import load_recipe
from axpo.record.run import RunDirectory

MISTYPED = [
    # Commands and options.
    ("trian demo", "No such command 'trian'. Did you mean 'train'?"),
    ("train demo --rezume RUN", "No such option: --rezume (Possible options: --resume, --run)"),
    ("train", "error train: expected a RECIPE (`axpo recipes` lists some), or --resume RUN"),
    ("check demo --nodes 1 2", "Option '--nodes' requires 3 arguments."),
    ("train demo --resume RUN --replay RUN", "at most one of them"),
    # Recipes.
    ("train demmo", "recipe demmo: no such file, and none of `axpo recipes`; did you mean demo?"),
    ("train RUN", "RUN: is a run directory: continue it with --resume RUN"),
    ("check .", "recipe .: is a folder; expected a YAML file"),
    # Keys and values.
    ("train demo --set learner.lrr=1", "learner.lrr: unknown key; did you mean learner.lr?"),
    ("train demo --set lr=1e-5", "lr: unknown key; did you mean learner.lr?"),
    ("train demo --set learnr.lr=1e-5", "learnr: unknown key; did you mean learner?"),
    ("train demo --set resampler.budget.ration=1", "did you mean resampler.budget.ratio?"),
    ("train demo --set learner.lr", "--set learner.lr: expected key=value, for example learner.lr"),
    ("train demo --set steps=many", "steps='many': Input should be a valid integer"),
    ("train demo --set algorithm=axo", "algorithm='axo': Input should be 'axpo' or 'grpo'"),
    ("train demo --set learner.objective=clipp", "expected one of clip, dr_grpo,"),
    # Runs and models that are not there.
    ("train --resume runs/none", "runs/none is not a run directory: expected a recipe.yaml in it"),
    ("eval runs/none", "eval: runs/none: nothing is there; expected a recipe, a run directory or"),
    ("report runs/none", "runs/none is not a run directory: expected a recipe.yaml in it"),
    ("check demo --set model=models/none", "model='models/none': no model folder there"),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run directory, in a folder with nothing else."""
    recipe = load_recipe("demo").model_dump(mode="json")
    RunDirectory.create("run", recipe, tmp_path).close()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    # Messages in frames are wrapped at the width of the terminal.
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    return tmp_path / "run"


def test_there_are_twenty():
    assert len(MISTYPED) == 20


@pytest.mark.parametrize(("typed", "answer"), MISTYPED, ids=[typed for typed, _ in MISTYPED])
def test_a_mistyped_command_is_answered_with_what_was_meant(
    typed, answer, run, monkeypatch, capsys
):
    before = sorted(run.parent.rglob("*"))
    monkeypatch.setattr("sys.argv", ["axpo", *typed.replace("RUN", str(run)).split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    # An answer with RUN in it either repeats the run or is about the word.
    assert answer in said or answer.replace("RUN", str(run)) in said
    assert "Traceback" not in said
    # Nothing was started, and nothing is left behind.
    assert not ray.is_initialized()
    assert sorted(run.parent.rglob("*")) == before
