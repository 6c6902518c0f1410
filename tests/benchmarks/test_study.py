"""A study's runs against a command that trains nothing, and its numbers against ones worked out by hand."""

import json
from pathlib import Path

import pytest

from axpo.config import load_recipe
from axpo.run import RunDirectory
from benchmarks.study.render import estimate, figure, markdown, read_results, values
from benchmarks.study.runs import Job, command, launched, load_jobs, run_pending

ARMS = load_jobs(Path("benchmarks/study/arms.yaml"))
CONTROL = load_jobs(Path("benchmarks/study/control.yaml"))
SUMMARY = dict.fromkeys(("pass1_start", "pass1_end", "pass4_start", "pass4_end", "tool_use_start", "tool_use_end"), 0.5)


@pytest.mark.parametrize("job", [job for job in ARMS if job.seed == 1], ids=lambda job: job.arm)
def test_every_arm_is_a_recipe_that_differs_from_the_others(job):
    recipe = load_recipe(job.recipe, job.overrides)
    others = [load_recipe(other.recipe, other.overrides) for other in ARMS if other.seed == 1 and other != job]
    assert recipe.seed == 1
    assert recipe not in others


def test_every_arm_of_the_control_is_a_recipe():
    recipes = [load_recipe(job.recipe, job.overrides) for job in CONTROL]
    assert {recipe.task.control_share for recipe in recipes} == {0.25}
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(CONTROL)


def test_runs_go_seed_by_seed():
    assert [job.seed for job in ARMS] == sorted(job.seed for job in ARMS)
    assert len({job.name for job in ARMS}) == len(ARMS)


class Trainer:
    """Stands for `axpo train`: writes a run directory; `unfinished` ones have no summary yet, `broken` ones fail."""

    def __init__(self, runs, unfinished=(), broken=()):
        self.runs, self.unfinished, self.broken, self.asked = runs, set(unfinished), set(broken), []

    def __call__(self, arguments, seconds):
        resumed = "--resume" in arguments
        name = Path(arguments[arguments.index("--resume" if resumed else "--run") + 1]).name
        self.asked.append((name, resumed))
        if name in self.broken:
            return 2
        run = RunDirectory.resume(self.runs / name)[0] if resumed else RunDirectory.create(name, {"name": name}, self.runs)
        with run:
            if name not in self.unfinished:
                run.log_metrics(1, {"pass1": 0.5})
                run.write_summary(**SUMMARY, steps=1, seconds=1.0, tokens=10)
        self.unfinished.discard(name)
        return 0


def test_a_study_goes_on_where_it_stopped(tmp_path):
    jobs = [Job(arm, 1, "r.yaml", ()) for arm in ("a", "b", "c")]
    results, runs = tmp_path / "results", tmp_path / "runs"
    trainer = Trainer(runs, unfinished=("b-1",), broken=("c-1",))
    assert run_pending(jobs, results, runs, 1, trainer) == ["c-1"]
    assert sorted(file.name for file in results.iterdir()) == ["a-1.json"]
    trainer.broken.clear()
    assert run_pending(jobs, results, runs, 1, trainer) == []
    assert trainer.asked == [("a-1", False), ("b-1", False), ("c-1", False), ("b-1", True), ("c-1", False)]
    kept = json.loads((results / "b-1.json").read_text())
    assert (kept["arm"], kept["seed"], kept["summary"]["pass1_end"], kept["metrics"]) == ("b", 1, 0.5, [{"step": 1, "pass1": 0.5}])


def test_no_run_begins_when_the_time_is_up(tmp_path):
    trainer = Trainer(tmp_path)
    assert run_pending([Job("a", 1, "r.yaml", ())], tmp_path / "results", tmp_path / "runs", 0, trainer) == []
    assert trainer.asked == []


def test_an_arm_is_one_command(tmp_path):
    job = Job("a", 7, "r.yaml", ("x=1", "seed=7"))
    assert command(job, tmp_path)[2:] == [
        *("axpo.cli", "train", "r.yaml", "--run", "a-7", "--set", "x=1", "--set", "seed=7", "--set", f"logging.root={tmp_path}")
    ]


def test_a_command_is_asked_to_end_when_its_time_is_up():
    assert launched(["sh", "-c", "trap 'exit 5' TERM; sleep 60 & wait"], 1) == 5
    assert launched(["sh", "-c", "exit 3"], 60) == 3


def test_an_interval_over_runs():
    assert estimate([0.5]) == (0.5, 0.5, 0.5)
    # Of two runs a draw of two has the mean 0, 1/2 or 1 with 1/4, 1/2, 1/4: the 2.5 % points are the ends.
    assert estimate([0.0, 1.0]) == (0.5, 0.0, 1.0)
    # Of 0 0 0 1: all four draws 0 with (3/4)^4 = 32 %; three or more ones with 5.1 %, of which four with 0.4 %: the ends are 0 and 3/4.
    assert estimate([0.0, 0.0, 0.0, 1.0]) == (0.25, 0.0, 0.75)


def results():
    def one(arm, seed, pass1):
        return {"arm": arm, "seed": seed, "summary": SUMMARY | {"pass1_end": pass1, "seconds": 10.0, "tokens": 2000}}

    return [one("axpo", 1, 0.25), one("axpo", 2, 0.75), one("grpo", 1, 0.5)]


def test_the_table_has_a_row_an_arm(tmp_path):
    for i, result in enumerate(results()):
        (tmp_path / f"{i}.json").write_text(json.dumps(result))
    shown = markdown(values(read_results(tmp_path), ["grpo", "axpo", "never_run"])).splitlines()
    assert shown[2:] == [
        "| grpo | 1 | 50.0 | 50.0 | 50.0 | – | 2.0 | 10.0 |",
        "| axpo | 2 | 50.0 [25.0, 75.0] | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] | – | 2.0 [2.0, 2.0] | 10.0 [10.0, 10.0] |",
    ]


def test_controls_have_columns_where_a_study_has_them():
    control = [results()[0], results()[2]]
    control[0]["summary"] |= {"kind/control/pass1_end": 0.75, "kind/control/tool_use_end": 0.125}
    lines = markdown(values(control, ["axpo", "grpo"])).splitlines()
    assert lines[0].endswith("| control: Pass@1, % | control: tool use, % |")
    assert [line.split(" | ")[-2:] for line in lines[2:]] == [["75.0", "12.5 |"], ["–", "– |"]]


def test_the_figure_is_written(tmp_path):
    figure(values(results(), ["grpo", "axpo"]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
