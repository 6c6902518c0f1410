"""The command line: what it lists, what it refuses before any actor starts, and how it says so."""

import os
import subprocess
import sys

import pytest
import ray
import yaml
from typer.testing import CliRunner

import axpo
from axpo import arguments, cli
from axpo.config import load_recipe
from axpo.record.run import RunDirectory

DEMO = "deploy/recipes/demo.yaml"
OWN = "tests.axpo.user_variants"
DATASET = {"kind": "dataset", "train": "a.jsonl", "held_out": "b.jsonl"}
CONCEPTS = (
    *("baselines", "benchmarks", "budgets", "fork_places", "judges", "objectives", "rankings"),
    *("schedules", "tasks", "tools", "trackers", "triggers", "verifiers"),
)


def refused(arguments, monkeypatch, capsys):
    """Run a command as a user does, and return the one line that refuses it."""
    monkeypatch.setattr("sys.argv", ["axpo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


def listed(*arguments):
    result = CliRunner().invoke(cli.app, ["list", *arguments])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_list_shows_every_concept_and_each_variant_on_a_line():
    heads = [line for line in listed() if not line.startswith(" ")]
    assert heads == list(CONCEPTS)


@pytest.mark.parametrize(
    ("concept", "names"),
    [
        ("objectives", ["clip", "dr_grpo", "dapo", "rloo", "gspo", "cispo"]),
        ("fork_places", ["first_call", "every_call", "prompt", "answer", "observation"]),
        ("tasks", ["custom", "dataset", "mixed", "small_digit", "small_fact", "small_product"]),
    ],
)
def test_list_shows_one_concept(concept, names):
    head, *lines = listed(concept)
    assert head == concept
    assert [line.split()[0] for line in lines] == names
    assert all(len(line.split()) > 2 for line in lines)  # a description, too


def test_the_help_of_list_names_every_concept():
    said = " ".join(CliRunner().invoke(cli.app, ["list", "--help"]).output.split())
    assert all(concept in said for concept in CONCEPTS)


def test_list_of_no_concept_names_those_there_are(monkeypatch, capsys):
    line = refused(["list", "goals"], monkeypatch, capsys)
    assert line == f"error CONCEPT='goals': expected one of {', '.join(CONCEPTS)}"


@pytest.mark.parametrize(
    ("key", "path", "fault", "expected"),
    [
        (
            "learner.objective",
            "nowhere:mine",
            "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'; ",
            "a function of (logprobs, ratio, advantages) or a subclass of "
            "learner.objectives.Objective",
        ),
        (
            "learner.credit.baseline",
            f"{OWN}:HalfBaseline",
            "has no advantages; ",
            "a function of (rewards) or a subclass of learner.baselines.Baseline",
        ),
        (
            "resampler.ranking",
            f"{OWN}:missing",
            f"{OWN} has no missing; ",
            "a function of (trajectory, span, draw) or a subclass of resampler.rankings.Ranking",
        ),
        (
            "resampler.fork_at",
            f"{OWN}:nobody",
            "",
            "a function of (trajectory, tokens) or a subclass of resampler.places.ForkPlace",
        ),
        (
            "resampler.trigger",
            f"{OWN}:NUMBER",
            "",
            "a function of (rewards_seen) or a subclass of resampler.triggers.Trigger",
        ),
        (
            "resampler.budget",
            f"{OWN}:Unrelated",
            "",
            "a function of (questions, n, k, history) or a subclass of resampler.budgets.Budget",
        ),
        (
            "resampler.schedule",
            f"{OWN}:whisper",
            "",
            "a function of (rank, prefixes) or a subclass of resampler.schedules.Schedule",
        ),
    ],
)
def test_a_bad_variant_of_ones_own_is_one_line(key, path, fault, expected, monkeypatch, capsys):
    line = refused(["check", DEMO, "--set", f"{key}={path}"], monkeypatch, capsys)
    assert line == f"error {DEMO}: {key}={path!r}: {fault}expected {expected}"


def test_a_bad_verifier_and_a_bad_tool_are_one_line(monkeypatch, capsys):
    task = yaml.safe_dump(DATASET | {"verifier": f"{OWN}:nobody"}, default_flow_style=True)
    line = refused(["check", DEMO, "--set", f"task={task}"], monkeypatch, capsys)
    assert f"task.verifier='{OWN}:nobody': expected a function of (question, answer)" in line
    tool = f"tools.tools={{mine: {{kind: '{OWN}:two'}}}}"
    line = refused(["check", DEMO, "--set", tool], monkeypatch, capsys)
    assert f"tools.tools.mine.kind: '{OWN}:two': expected a function of (name)" in line


def test_training_with_a_bad_variant_starts_nothing(tmp_path, monkeypatch, capsys):
    settings = [f"--set=logging.root={tmp_path}", f"--set=resampler.ranking={OWN}:nobody"]
    line = refused(["train", DEMO, *settings], monkeypatch, capsys)
    assert f"resampler.ranking='{OWN}:nobody': expected a function" in line
    assert list(tmp_path.iterdir()) == []
    assert not ray.is_initialized()


def test_variants_of_ones_own_are_checked_and_printed():
    settings = [
        *("--set", f"learner.objective={OWN}:surrogate"),
        *("--set", f"resampler.ranking={OWN}:LastFirst"),
    ]
    result = CliRunner().invoke(cli.app, ["check", DEMO, "--full", *settings])
    assert result.exit_code == 0, result.output
    assert f"objective: {OWN}:surrogate" in result.output
    assert f"ranking: {OWN}:LastFirst" in result.output


def test_check_says_how_large_the_run_is():
    for algorithm, forks in (("axpo", 32), ("grpo", 0)):
        settings = ["--set", f"algorithm={algorithm}"]
        result = CliRunner().invoke(cli.app, ["check", DEMO, *settings])
        # R = 0.25 * 16 * 8 = 32
        assert (
            f"ok demo: {algorithm}, 20 steps of 16 questions x 8 rollouts + at most {forks} forks; "
            "2 ZeRO-3 ranks (0 GPU each), 1 engines (0 GPU each)"
        ) == result.output.splitlines()[-1]


def test_check_ends_with_a_table_and_its_verdict_and_shows_the_recipe_if_asked():
    said = CliRunner().invoke(cli.app, ["check", DEMO]).output.splitlines()
    assert len(said) < 25
    *_, blank, recipe, model, rank, engine, nodes, warnings, verdict = said
    assert blank == ""
    assert recipe.split() == ["recipe", "demo,", "axpo"]
    assert model.endswith("qwen3-vl-tiny, 2.4 million parameters")
    assert rank.strip().startswith("learner, each of 2 ranks")
    assert engine.strip().startswith("engine, each of 1")
    assert nodes.split()[:2] == ["nodes", "1"]
    assert warnings.split() == ["warnings", "none"]
    assert verdict.startswith("ok demo: axpo, 20 steps")
    full = CliRunner().invoke(cli.app, ["check", DEMO, "--full"]).output.splitlines()
    assert len(full) > 150
    assert full[0].strip() == "name: demo"
    on_mine = CliRunner().invoke(cli.app, ["check", DEMO, "--nodes", "2", "0", "8"])
    assert on_mine.output.splitlines()[-3].split()[:3] == ["nodes", "2", "nodes"]


def test_the_version_names_the_parts(monkeypatch):
    said = CliRunner().invoke(cli.app, ["--version"])
    assert said.exit_code == 0
    assert said.output.startswith(f"axpo {axpo.__version__}")
    assert "torch " in said.output
    assert "ray " in said.output


def completed(typed):
    """Return what a shell is offered for a command line that ends in the middle of a word."""
    environment = {"_AXPO_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    environment["COMP_CWORD"] = str(len(typed.split()) - 1)
    done = subprocess.run(
        [sys.executable, "-c", "from axpo import cli; cli.app(prog_name='axpo')"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("axpo train dem", ["demo"]),
        ("axpo train demo --set learner.lora.r", ["learner.lora.rank="]),
        ("axpo list obj", ["objectives"]),
        ("axpo tr", ["train"]),
    ],
)
def test_a_shell_completes_recipes_keys_and_concepts(typed, expected):
    assert completed(typed) == expected


def test_runs_are_completed(tmp_path, monkeypatch):
    RunDirectory.create("a", {}, tmp_path / "runs").close()
    monkeypatch.chdir(tmp_path)
    assert list(arguments._runs("")) == ["runs/", "runs/a"]
    assert list(arguments._runs("runs/")) == ["runs/a"]
    for command in ("report", "view", "train --resume", "train --replay", "eval"):
        assert completed(f"axpo {command} runs/") == ["runs/a"]


def test_an_older_runs_recipe_says_what_has_moved(tmp_path, monkeypatch, capsys):
    recipe = load_recipe(DEMO).model_dump(mode="json")
    recipe["learner"]["temperature"] = 1.0
    RunDirectory.create("old", recipe, tmp_path).close()
    run = tmp_path / "old"
    line = refused(["train", "--resume", str(run)], monkeypatch, capsys)
    moved = "learner.temperature: leave it out: the learner takes rollout.temperature"
    assert line == f"error {run}/recipe.yaml: {moved}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "a", "--replay", "b"], "--resume, --replay and --rollouts-only: at most one"),
        (["--resume", "a", "--set", "seed=2"], "leave out --set and --run"),
        (["--resume", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_options_that_do_not_go_together(options, message, monkeypatch, capsys):
    assert message in refused(["train", DEMO, *options], monkeypatch, capsys)


def test_the_help_needs_nothing_heavy():
    code = (
        "import sys; from axpo import cli; sys.argv = ['axpo', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'ray', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "axpo list" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
