"""What credit pushes before a decision: by hand."""

import sys

import numpy as np
import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from benchmarks.study import push
from benchmarks.study.push import Push, decided, markdown, measure, pushes
from learner.credit import credit
from resampler.places import Answer, FirstCall
from tests.axpo.helpers import TOKENS, direct, group, resample, zooming

RECIPE = load_recipe("deploy/recipes/debug.yaml")


def test_only_tokens_up_to_the_decision_count():
    calls, answers = credit([group([zooming(0, 1.0), direct(1, 0.0)])], TOKENS)
    ((prefix, _),) = FirstCall().points(calls.trajectory, TOKENS)
    share = prefix / calls.trajectory.policy_mask.sum()
    assert decided(calls, TOKENS) == pytest.approx(share, rel=1e-5)
    ((end, _),) = Answer().points(answers.trajectory, TOKENS)
    share = end / len(answers.trajectory.response_ids)
    assert decided(answers, TOKENS) == pytest.approx(-share, rel=1e-5)
    assert answers.trajectory.response_ids[end - 1] == TOKENS.think_close


def test_each_stream_by_kind():
    plain = group([zooming(0, 1.0), direct(1, 0.0)])
    source = zooming(0, 0.0)
    continued = resample(source, [((0, 0, 10, 10), 1.0, 0), ((0, 0, 20, 20), 0.0, 0)])
    forked = group([source, direct(1, 1.0)], [continued])
    pairs = [("frame", plain), ("frame", plain), ("control", forked)]
    control, frame = pushes("axpo-1", pairs, TOKENS, RECIPE)
    assert (control.kind, control.questions, control.resampled) == ("control", 1, 1)
    # The recovered prefix raises the group's rewards to (1, 1): no advantage for it; the source's
    # own continuation trains nothing.
    assert (control.prefix, control.calling) == (0.0, 0.0)
    assert control.answering > 0
    assert control.net == -control.answering
    assert (frame.questions, frame.resampled, frame.prefix) == (2, 0, 0.0)
    (calls, answers) = credit([plain], TOKENS)
    assert frame.calling == pytest.approx(decided(calls, TOKENS))  # a mean over questions
    assert frame.net == pytest.approx(decided(calls, TOKENS) - decided(answers, TOKENS))
    # Beside a wrong answer a recovered prefix is pushed up with all of its advantage: every token
    # it trains lies before the decision.
    lifted = group([source, direct(1, 0.0)], forked.resamples)
    (only,) = pushes("axpo-1", [("frame", lifted)], TOKENS, RECIPE)
    assert only.prefix == pytest.approx(1.0, abs=1e-5)


def test_table_is_by_arm_and_kind():
    axpo = [
        Push("axpo-1", "frame", 10, 5, 0.1, 0.2, 0.1),
        Push("axpo-2", "frame", 10, 3, 0.3, 0.2, 0.1),
    ]
    grpo = Push("grpo-1", "frame", 10, 0, -0.5, 0, 0.5)
    _, _, first, second = markdown([*axpo, grpo]).splitlines()
    assert first.startswith("| axpo, frame | 2 | 40 | +0.200 [+0.100, +0.300] | +0.200 [")
    assert first.endswith("| +0.300 [+0.200, +0.400] |")
    assert second == "| grpo, frame | 1 | 0 | -0.500 | +0.000 | +0.500 | -1.000 |"


def test_a_run_that_kept_too_few_groups_is_refused(tmp_path, monkeypatch, capsys):
    with RunDirectory.create("run-1", RECIPE.model_dump(mode="json"), tmp_path) as run:
        run.save_groups(1, [group([direct(0, 1.0)], question="train-0")], lambda ids: "", limit=4)
    with pytest.raises(AxpoError, match="groups_kept"):
        measure(run.path)
    monkeypatch.setattr(sys, "argv", ["push", str(run.path), "--out", str(tmp_path / "raw.json")])
    assert push.main() == 2
    assert "groups_kept" in capsys.readouterr().err


def test_kept_groups_of_a_run_are_measured(tmp_path):
    recipe = RECIPE.model_copy(update={"questions_per_step": 1})
    kept = group([zooming(0, 1.0), direct(1, 0.0)], question="train-3")
    with RunDirectory.create("axpo-1", recipe.model_dump(mode="json"), tmp_path) as run:
        run.save_groups(1, [kept], lambda ids: "", limit=1)
    (found,) = measure(run.path)
    kind = RECIPE.task.load().train(3).info["kind"]
    assert (found.run, found.kind, found.questions) == ("axpo-1", kind, 1)
    assert np.isfinite(found.net)


def test_a_question_that_its_number_does_not_find_is_refused(tmp_path):
    recipe = RECIPE.model_copy(update={"questions_per_step": 1})
    for number, name in enumerate(("row-3", "train")):
        with RunDirectory.create(f"run-{number}", recipe.model_dump(mode="json"), tmp_path) as run:
            run.save_groups(1, [group([direct(0, 1.0)], question=name)], lambda ids: "", limit=1)
        with pytest.raises(AxpoError, match=f"question {name} is not found again"):
            measure(run.path)
