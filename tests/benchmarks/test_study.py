"""A study's runs against a command that trains nothing, and its numbers against ones by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from axpo.config import load_recipe
from axpo.record.run import RunDirectory
from axpo.record.summary import write_summary
from benchmarks.study.__main__ import main
from benchmarks.study.curves import cumulated_tokens, held_out_points, training_curves
from benchmarks.study.intervals import (
    RATES,
    band,
    estimate,
    over_seeds_and_questions,
    rate_parts,
    rates,
)
from benchmarks.study.render import by_arm, markdown, read_results, table
from benchmarks.study.runs import Job, command, launched, load_jobs, run_pending, written

FOLDER = Path("benchmarks/study")
STUDIES = {file.stem: load_jobs(file) for file in sorted(FOLDER.glob("*.yaml"))}
SUMMARY = dict.fromkeys(
    ("pass1_start", "pass1_end", "pass4_start", "pass4_end", "tool_use_start", "tool_use_end"), 0.5
)


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_is_a_recipe_that_differs_from_the_others_in_more_than_steps_or_questions(study):
    jobs = STUDIES[study]
    recipes = [load_recipe(job.recipe, job.overrides) for job in jobs]
    assert len({job.name for job in jobs}) == len(jobs)
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(jobs)
    shared = {"steps", "questions_per_step", "task", "model"}
    assert len({recipe.model_dump_json(include=shared) for recipe in recipes}) == 1
    assert [recipe.seed for recipe in recipes] == [job.seed for job in jobs]


def test_runs_go_seed_by_seed_and_axpo_and_grpo_have_more():
    runs = [(job.seed, job.arm) for job in STUDIES["arms"]]
    arms = [arm for seed, arm in runs if seed == 1]
    assert arms[:2] == ["axpo", "grpo"]
    assert runs == [(seed, arm) for seed in (1, 2, 3) for arm in arms] + [
        (seed, arm) for seed in (4, 5) for arm in ("axpo", "grpo")
    ]
    assert [(job.seed, job.arm) for job in STUDIES["easy"]] == [
        (seed, arm) for seed in (1, 2, 3, 4, 5) for arm in ("axpo", "grpo")
    ]


def test_seeds_of_an_arm_that_is_not_there_are_refused(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "{recipe: r.yaml, seeds: {default: 1, axop: 2}, overrides: [], arms: {axpo: []}}"
    )
    with pytest.raises(ValueError, match="seeds of axop, expected an arm or `default`"):
        load_jobs(tmp_path / "s.yaml")


class Trainer:
    """Stands for `axpo train`: writes a run directory.

    `unfinished` runs have no summary yet, `broken` ones fail.
    """

    def __init__(self, runs, unfinished=(), broken=()):
        self.runs = runs
        self.unfinished, self.broken = set(unfinished), set(broken)
        self.asked = []

    def __call__(self, arguments, seconds):
        resumed = "--resume" in arguments
        name = Path(arguments[arguments.index("--resume" if resumed else "--run") + 1]).name
        self.asked.append((name, resumed))
        if name in self.broken:
            return 2
        if resumed:
            run, _ = RunDirectory.resume(self.runs / name)
        else:
            run = RunDirectory.create(name, {"name": name}, self.runs)
        with run:
            if name not in self.unfinished:
                finish(run)
        self.unfinished.discard(name)
        return 0


def finish(run):
    """Write what a finished run of one step has."""
    run.log_metrics(0, {"eval/pass1": 0.5})
    run.log_held_out(0, {"frame": [[4, 2, 2, 0]]})
    of_step = {"pass1": 2 / 3, "loss": 0.1, "other/pass1": 0.5}
    of_family = {"family/zoom/pass1": 0.5, "family/zoom/loss": 0.1}
    run.log_metrics(1, of_step | of_family)
    write_summary(run.path, SUMMARY | {"steps": 1, "seconds": 1.0, "tokens": 10})


def test_a_study_goes_on_where_it_stopped(tmp_path):
    jobs = [Job(arm, 1, "r.yaml", ()) for arm in ("a", "b", "c")]
    results, runs = tmp_path / "results", tmp_path / "runs"
    trainer = Trainer(runs, unfinished=("b-1",), broken=("c-1",))
    assert run_pending(jobs, results, runs, 1, trainer) == ["c-1"]
    assert sorted(file.name for file in results.iterdir()) == ["a-1.json"]
    trainer.broken.clear()
    assert run_pending(jobs, results, runs, 1, trainer) == []
    assert trainer.asked == [
        ("a-1", False),
        ("b-1", False),
        ("c-1", False),
        ("b-1", True),
        ("c-1", False),
    ]
    kept = json.loads((results / "b-1.json").read_text())
    assert (kept["arm"], kept["seed"], kept["recipe"]) == ("b", 1, {"name": "b-1"})
    assert kept["summary"]["pass1_end"] == 0.5
    # What is rendered, to six digits.
    assert kept["metrics"] == [{"step": 1, "pass1": 0.666667, "family/zoom/pass1": 0.5}]
    assert kept["held_out"] == [{"step": 0, "counts": {"frame": [[4, 2, 2, 0]]}}]


def test_a_raw_result_has_a_line_a_step():
    assert (
        written({"a": 1, "metrics": [{"step": 1}, {"step": 2}]})
        == '{\n"a": 1,\n"metrics": [\n{"step":1},\n{"step":2}\n]\n}\n'
    )


def test_no_run_begins_when_the_time_is_up(tmp_path):
    trainer, jobs = Trainer(tmp_path), [Job("a", 1, "r.yaml", ())]
    assert run_pending(jobs, tmp_path / "results", tmp_path / "runs", 0, trainer) == []
    assert trainer.asked == []


def test_an_arm_is_one_command(tmp_path):
    job = Job("a", 7, "r.yaml", ("x=1", "seed=7"))
    _, _, *rest = command(job, tmp_path)
    assert rest[:5] == ["axpo.cli", "train", "r.yaml", "--run", "a-7"]
    assert rest[5:] == ["--set", "x=1", "--set", "seed=7", "--set", f"logging.root={tmp_path}"]


def test_a_command_is_asked_to_end_when_its_time_is_up():
    assert launched(["sh", "-c", "trap 'exit 5' TERM; sleep 60 & wait"], 1) == 5
    assert launched(["sh", "-c", "exit 3"], 60) == 3


def test_an_interval_over_runs():
    assert estimate([0.5]) == (0.5, 0.5, 0.5)
    # Of two runs a draw of two has the mean 0, 1/2 or 1 with 1/4, 1/2, 1/4: the 2.5 % points are
    # the ends.
    assert estimate([0.0, 1.0]) == (0.5, 0.0, 1.0)
    # Of 0 0 0 1: all four draws 0 with (3/4)^4 = 32 %; three or more ones with 5.1 %, of which four
    # with 0.4 %: the ends are 0 and 3/4.
    assert estimate([0.0, 0.0, 0.0, 1.0]) == (0.25, 0.0, 0.75)


def test_the_rates_are_those_of_the_counts():
    # Rollouts, right, with the tool, right with the tool. Pass@4 of 4 rollouts: any right; of 8
    # with 1 right: 1 - C(7, 4) / C(8, 4) = 1/2.
    counts = np.array([[4, 2, 2, 0], [4, 1, 1, 1], [4, 0, 0, 0], [8, 1, 1, 0]], float)
    expected = {
        "pass1": 4 / 20,
        "pass4": 2.5 / 4,
        "tool_use_rate": 4 / 20,
        "pass1_given_tool": 1 / 4,
        "tool_all_wrong_rate": 2 / 3,
    }
    assert dict(zip(RATES, rates(rate_parts(counts)), strict=True)) == pytest.approx(expected)
    assert np.isnan(rates(rate_parts(counts[2:3]))).tolist() == [False, False, False, True, True]


def parts(*shares):
    """A run [Q, 1, 2] of questions with these shares right."""
    return np.array([[[share, 1.0]] for share in shares])


def test_an_interval_over_seeds_and_questions():
    # Of seeds that agree question by question, one question each: nothing varies.
    assert over_seeds_and_questions([parts(0.5), parts(0.5)]) == [(0.5, 0.5, 0.5)]
    # Only seeds vary: two seeds, 0 and 1 whatever the question.
    assert over_seeds_and_questions([parts(0, 0, 0), parts(1, 1, 1)]) == [(0.5, 0.0, 1.0)]
    # Only questions vary: one seed, and the mean of 4 drawn of 0 0 0 1 is as in
    # `test_an_interval_over_runs`.
    assert over_seeds_and_questions([parts(0, 0, 0, 1)]) == [(0.25, 0.0, 0.75)]
    # Questions are drawn for all seeds at once: seeds that agree on each question tell no more of
    # the questions than one of them.
    assert over_seeds_and_questions([parts(0, 0, 0, 1)] * 5) == [(0.25, 0.0, 0.75)]
    # Both: the variance of a draw's mean is that between S seeds, over S, and that between Q
    # questions within a seed, over S * Q.
    rng = np.random.default_rng(1)
    runs = [parts(*(rng.random(64) < share)) for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    (mean, low, high), *_ = over_seeds_and_questions(runs)
    means = np.array([run[:, 0, 0].mean() for run in runs])
    deviation = np.sqrt(means.var() / 6 + (means * (1 - means)).mean() / (6 * 64))
    assert mean == pytest.approx(means.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)
    with pytest.raises(ValueError, match=r"evaluations of \[3, 4\] questions"):
        over_seeds_and_questions([parts(0, 0, 0), parts(1, 1, 1, 1)])


def test_a_seed_without_a_rate_is_left_out_of_its_mean():
    without, half = np.array([[[0.0, 0.0]]] * 2), parts(0.5, 0.5)
    assert over_seeds_and_questions([without, half]) == [(0.5, 0.5, 0.5)]
    assert np.isnan(over_seeds_and_questions([without])).all()


def result(arm, seed, end, tokens, recovery=(), every=()):
    """Two steps; all questions of a seed are alike, so that only seeds vary.

    `end` and `every` are counts of a question.
    """
    metrics = [
        {"step": step, "pass1": 0.25 * step, "generated_tokens": tokens / 2} for step in (1, 2)
    ]
    for row, value in zip(metrics, recovery, strict=False):
        row["recovery_rate"] = value
    evaluations = [(0, (4, 1, 2, 0)), *every, (2, end)]
    return {
        "arm": arm,
        "seed": seed,
        "summary": {"tokens": tokens, "seconds": 10.0},
        "held_out": [
            {"step": step, "counts": {"frame": [counts] * 3}} for step, counts in evaluations
        ],
        "metrics": metrics,
    }


def results():
    return [
        result("grpo", 1, (4, 2, 0, 0), 2000),
        result("axpo", 1, (4, 1, 4, 1), 3000, (0.25, 0.75)),
        result("axpo", 2, (4, 3, 4, 3), 5000, (None, 0.25)),
        result("grpo", 2, (4, 2, 0, 0), 2500),
        result("axpo", 3, (4, 2, 4, 2), 4000),
    ]


def test_the_table_has_a_row_of_the_start_and_one_an_arm():
    lines = markdown(table(by_arm(results(), ["axpo", "grpo", "never_run"]))).splitlines()
    rows = {}
    for line in lines:
        _, arm, *cells, _ = [cell.strip() for cell in line.split("|")]
        rows[arm] = cells
    assert list(rows) == ["arm", "---", "SFT start", "axpo", "grpo"]
    # One start a seed, however many arms: two of four rollouts use the tool, one without is right.
    assert rows["SFT start"] == ["3", "25.0", "100.0", "50.0", "0.0", "100.0", "–", "–", "–", "–"]
    # Recovery: means over steps 50 and 25, the third seed never resampled. Extra tokens, seed by
    # seed: 3000 / 2000 and 5000 / 2500.
    ends = ["50.0 [25.0, 75.0]", "100.0", "100.0", "50.0 [25.0, 75.0]", "0.0"]
    costs = ["37.5 [25.0, 50.0]", "4.0 [3.0, 5.0]", "75.0 [50.0, 100.0]", "10.0"]
    assert rows["axpo"] == ["3", *ends, *costs]
    ends, costs = ["50.0", "100.0", "0.0", "–", "–"], ["–", "2.2 [2.0, 2.5]", "0.0", "10.0"]
    assert rows["grpo"] == ["2", *ends, *costs]


def test_a_study_without_its_baseline_has_no_extra_tokens():
    assert "extra_tokens" not in table(by_arm(results(), ["axpo"]))["axpo"]
    assert table({}) == {}


def test_controls_have_columns_where_a_study_has_them():
    control = results()[:2]
    for of_run in control:
        for evaluation in of_run["held_out"]:
            evaluation["counts"]["control"] = [(4, 3, 1, 1), (4, 3, 0, 0)]
    lines = markdown(table(by_arm(control, ["axpo", "grpo"]))).splitlines()
    assert lines[0].endswith("| control: Pass@1, % | control: tool use, % |")
    assert [line.split(" | ")[-2] for line in lines[2:]] == ["75.0"] * 3
    assert [line.split(" | ")[-1].startswith("12.5 [0.0, ") for line in lines[2:]] == [True] * 3
    assert "control" not in markdown(table(by_arm(results(), ["axpo"])))


def test_families_of_a_mixed_task_have_columns():
    mixed = results()[:2]
    for of_run in mixed:
        for evaluation in of_run["held_out"]:
            evaluation["counts"] = {
                "zoom/frame": [(4, 4, 4, 4)],
                "zoom/larger": [(4, 2, 0, 0)],
                "search/easy": [(4, 1, 4, 1)],
            }
    header, _, *rows = markdown(table(by_arm(mixed, ["axpo", "grpo"]))).splitlines()
    columns = ("zoom: Pass@1", "zoom: tool use", "search: Pass@1", "search: tool use")
    assert header.endswith("".join(f"| {column}, % " for column in columns) + "|")
    for line in rows:
        zoom_right, zoom_use, search_right, _ = line.split(" | ")[-4:]
        assert (zoom_right.split()[0], zoom_use.split()[0]) == ("75.0", "50.0")
        assert search_right == "25.0"


def test_curves_are_of_training_steps_and_points_of_evaluations():
    runs = [
        result("axpo", 1, (4, 1, 4, 1), 3000, (0.25, 0.75), [(1, (4, 2, 2, 2))]),
        result("axpo", 2, (4, 3, 4, 3), 5000),
    ]
    # 25 and 50: both within the three steps of either.
    assert training_curves(runs, "pass1").tolist() == [[37.5, 37.5]] * 2
    assert training_curves(runs, "recovery_rate")[0].tolist() == [50.0, 50.0]
    assert np.isnan(training_curves(runs, "recovery_rate")[1]).all()
    assert cumulated_tokens(runs).tolist() == [0.0, 2.0, 4.0]
    steps, points = held_out_points(runs)
    assert steps == [0, 2]  # the second was not evaluated after step 1
    assert points[:, RATES.index("pass1")].tolist() == [25.0, 50.0]
    mean, low, high = band(np.array([[0.0, 1.0, np.nan], [1.0, 1.0, 0.5]]))
    assert mean.tolist() == [0.5, 1.0, 0.5]
    assert (low.tolist(), high.tolist()) == ([0.0, 1.0, 0.5], [1.0, 1.0, 0.5])


def test_one_command_renders_what_there_is(tmp_path, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    for of_run in results():
        (folder / f"{of_run['arm']}-{of_run['seed']}.json").write_text(written(of_run))
    assert main(["--minutes", "0", "--results", str(folder), "--runs", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    for name in ("figure.png", "curves.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("study", STUDIES)
def test_the_committed_table_is_that_of_the_committed_results(study):
    folder = FOLDER if study == "arms" else FOLDER / study
    arms = list(dict.fromkeys(job.arm for job in STUDIES[study]))
    rows = table(by_arm(read_results(folder / "results"), arms))
    assert markdown(rows) == (folder / "table.md").read_text()
