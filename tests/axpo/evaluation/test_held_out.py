"""What is measured: a recipe's model, or a run's last checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from axpo.config import EvaluationConfig, load_recipe
from axpo.errors import AxpoError
from axpo.evaluation.held_out import held_out, load_target
from axpo.record.run import RunDirectory
from rollout_workers.trajectory import LazyImage, ObservationSegment, Question, UnusableQuestion
from tests.axpo.helpers import TOKENS, zooming
from tests.axpo.helpers import group as make_group

DEBUG = "deploy/recipes/debug.yaml"


def test_a_target_is_a_recipe_or_a_run(tmp_path):
    recipe, model = load_target(Path(DEBUG), ["seed=5"])
    assert (recipe.seed, model) == (5, "axpo/models/qwen3-vl-tiny")
    with RunDirectory.create("run", load_recipe(DEBUG).model_dump(mode="json"), tmp_path) as run:
        with pytest.raises(AxpoError, match="no complete checkpoint"):
            load_target(run.path)
        for step in (1, 2):
            run.checkpoints.path(step).mkdir(parents=True)
    recipe, model = load_target(run.path, ["evaluation.samples=8"])
    assert (recipe.name, recipe.evaluation.samples) == ("debug", 8)
    assert model == str(run.checkpoints.path(2) / "hf")
    with pytest.raises(AxpoError, match="is not a run directory"):
        load_target(tmp_path)


def test_questions_that_cannot_be_asked_are_counted_and_no_wrong_answers():
    pixels = np.zeros((4, 4, 3), np.uint8)

    class Pool:
        def ready(self):
            return TOKENS

        def outcomes(self, questions, step, n, *, temperature, evaluating):
            for question in questions[1:]:
                rollouts = [zooming(i, 1.0, question=question.id) for i in range(n)]
                yield replace(make_group(rollouts, question=question.id), question=question)
            yield UnusableQuestion("a.jsonl, row 1: images: a.jpg cannot be read")

    asked = [Question(str(i), "?", (LazyImage(lambda: pixels),), "7") for i in range(3)]
    task = SimpleNamespace(held_out=lambda: asked)
    found = held_out(Pool(), task, EvaluationConfig())
    assert (found.numbers["pass1"], found.numbers["dropped"]) == (1.0, 0.0)
    assert (found.numbers["unusable"], len(found.counts[""])) == (1.0, 2)
    assert found.unusable == ("a.jsonl, row 1: images: a.jpg cannot be read",)


def test_the_same_held_out_groups_are_kept_whole_and_evenly_over_all_questions():
    class Pool:
        def __init__(self, order):
            self.order = order

        def ready(self):
            return TOKENS

        def outcomes(self, questions, step, n, *, temperature, evaluating):
            for i in self.order:
                question = questions[i]
                rollouts = [zooming(i, 1.0, question=question.id) for i in range(n)]
                yield replace(make_group(rollouts, question=question.id), question=question)

    pixels = np.zeros((4, 4, 3), np.uint8)
    asked = [Question(str(i), "?", (LazyImage(lambda: pixels),), "7") for i in range(10)]
    task = SimpleNamespace(held_out=lambda: asked)
    for order in (range(10), reversed(range(10))):
        kept = held_out(Pool(order), task, EvaluationConfig(), keep=4).kept
        assert [group.question.id for group in kept] == ["0", "2", "5", "7"]
        segments = kept[0].rollouts[0].segments
        crops = [s.images for s in segments if isinstance(s, ObservationSegment)]
        assert crops
        assert all(crops)
    assert held_out(Pool(range(10)), task, EvaluationConfig()).kept == ()
    assert len(held_out(Pool(range(10)), task, EvaluationConfig(), keep=99).kept) == 10
