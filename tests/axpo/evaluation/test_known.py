"""Held-out numbers that come with a model: taken only if everything they depend on is equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.evaluation.held_out import HeldOut, evaluate_model
from axpo.evaluation.known import conditions, known_numbers, write_known
from axpo.model_folder.proven import FILE, model_hash
from axpo.session import ray_session

COUNTS = {"": [[4, 1, 2, 0]]}
NUMBERS = {"pass1": 0.25, "tool_use": 0.5, "dropped": 0.0, "unusable": 0.0}
FOUND = HeldOut(NUMBERS, COUNTS, ())


@pytest.fixture
def model(tmp_path):
    """Return a copy of the demo's model without its numbers."""
    folder = tmp_path / "model"
    shutil.copytree("axpo/models/qwen3-vl-tiny", folder)
    (folder / FILE).unlink(missing_ok=True)
    return folder


def asked(model, *settings):
    """Return the demo with settings, and its task."""
    recipe = load_recipe("demo", [f"model={model}", "task.held_out=8", *settings])
    return recipe, recipe.task.load()


def test_what_was_written_is_taken_for_the_same_recipe(model):
    assert known_numbers(*asked(model)) is None
    assert write_known(*asked(model), FOUND) == model / FILE
    known = known_numbers(*asked(model))
    assert (known.numbers, known.counts) == (NUMBERS, COUNTS)


@pytest.mark.parametrize(
    "setting",
    [
        "seed=2",
        "evaluation.samples=8",
        "evaluation.temperature=0.5",
        "task.frames=[1, 1]",
        "task.held_out=9",
        "rollout.max_turns=2",
        "rollout.max_turn_tokens=64",
        "rollout.engine.dtype=bfloat16",
        "images.max_pixels=65536",
        "resampler.trigger={name: all_wrong, success_above: 0.5}",
    ],
)
def test_other_conditions_are_measured(model, setting):
    write_known(*asked(model), FOUND)
    assert known_numbers(*asked(model, setting)) is None


def test_what_does_not_matter_may_differ(model):
    write_known(*asked(model), FOUND)
    changed = ["steps=3", "algorithm=grpo", "learner.lr=1e-5", "rollout.n=4"]
    assert known_numbers(*asked(model, *changed)) is not None


def test_another_model_is_measured(model):
    write_known(*asked(model), FOUND)
    before = model_hash(model)
    (model / "README.md").write_text("another card")
    assert model_hash(model) == before
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert model_hash(model) != before
    assert known_numbers(*asked(model)) is None


def test_numbers_under_other_conditions_stay_and_those_of_another_model_go(model):
    write_known(*asked(model), FOUND)
    write_known(*asked(model, "seed=2"), FOUND)
    write_known(*asked(model), FOUND)
    assert [entry["conditions"]["seed"] for entry in json.loads((model / FILE).read_text())] == [
        2,
        1,
    ]
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    write_known(*asked(model), FOUND)
    assert len(json.loads((model / FILE).read_text())) == 1


def test_numbers_that_leave_questions_out_are_not_written(model):
    lost = HeldOut(NUMBERS | {"dropped": 2.0}, COUNTS, ())
    with pytest.raises(AxpoError, match="2 questions were dropped and 0 were set aside"):
        write_known(*asked(model), lost)
    assert not (model / FILE).exists()


def test_a_damaged_file_is_named(model):
    (model / FILE).write_text('[{"model": 3}]')
    with pytest.raises(AxpoError, match=r"held_out.json: expected what `axpo model measure`"):
        known_numbers(*asked(model))


def test_the_demo_takes_the_numbers_that_its_model_ships_with():
    recipe = load_recipe("demo")
    known = known_numbers(recipe, recipe.task.load())
    assert known is not None, "the model, the task or the demo changed: axpo model measure demo"
    rows = np.concatenate([np.array(part) for part in known.counts.values()])
    assert rows[:, 0].tolist() == [4] * len(rows)
    assert known.numbers["pass1"] == pytest.approx(rows[:, 1].sum() / rows[:, 0].sum())


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_measuring_the_demos_model_again_finds_the_shipped_numbers():
    recipe = load_recipe("demo")
    task = recipe.task.load()
    known = known_numbers(recipe, task)
    with ray_session(recipe, learner=False):
        found = evaluate_model(recipe, recipe.model)
    # Equal on one machine. Other processors sum in another order, and of 1,024 rollouts with the
    # same seeds a few then end otherwise; 0.03 is two standard errors without common seeds.
    for name in ("pass1", "pass4", "tool_use"):
        assert found.numbers[name] == pytest.approx(known.numbers[name], abs=0.03), name
    assert Path(recipe.model, FILE).is_file()
    assert conditions(recipe, task) == known.conditions
