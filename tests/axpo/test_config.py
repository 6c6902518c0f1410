"""Bad input: one clear line that names the field or row, before anything starts."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from axpo.cli import app
from axpo.config import load_recipe, parse_recipe
from axpo.errors import AxpoError
from axpo.tasks import load_task

DEMO = "deploy/recipes/demo.yaml"


@pytest.mark.parametrize(
    "recipe", sorted(str(p) for p in Path("deploy/recipes").glob("*.yaml") if p.stem != "embedded")
)
def test_every_recipe_checks(recipe):
    result = CliRunner().invoke(app, ["check", recipe])
    assert result.exit_code == 0, result.output
    assert "ok" in result.output


def test_the_papers_settings():
    for size in ("2b", "4b", "8b"):
        recipe = load_recipe(f"deploy/recipes/qwen3-vl-{size}-thinking.yaml")
        assert (
            recipe.rollout.n,
            recipe.resampler.k,
            recipe.resampler.budget.ratio,
            recipe.rollout.max_turns,
        ) == (8, 4, 0.25, 3)
        objective = recipe.learner.objective
        assert (objective.clip_low, objective.clip_high, recipe.learner.kl_beta) == (
            0.2,
            0.4,
            1e-3,
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lrr=1", "learner.lrr: unknown key"),
        ("task.scene_px=1", "task.scene_px: unknown key"),
        ("learner.lr=fast", "learner.lr='fast': Input should be a valid number"),
        ("rollout.n=1", "rollout.n=1: Input should be greater than or equal to 2"),
        ("resampler.k=1", "resampler.k=1: Input should be greater than or equal to 2"),
        ("algorithm=ppo", "algorithm='ppo': Input should be 'axpo' or 'grpo'"),
        (
            "rollout.engine.weight_transfer=nccl",
            "rollout.engine.weight_transfer='nccl': needs learner.gpus_per_rank=1",
        ),
        ("tools.tools={pyton: {}}", "tools.tools.pyton: 'pyton': expected one of"),
        ("model=nowhere/at/all", "model='nowhere/at/all': no model folder there"),
        ("learner", "--set learner: expected key=value"),
    ],
)
def test_a_bad_field_is_one_line(override, message):
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEMO, [override]).check_inputs()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithm=grpo", "resampler.fork_at=prompt"],
            "resampler.fork_at='prompt': means nothing with algorithm='grpo'",
        ),
        (
            ["algorithm=grpo", "learner.credit.joined=true"],
            "learner.credit.joined=True: means nothing with algorithm='grpo'",
        ),
        (
            ["learner.credit={joined: true, prefix: false}"],
            "with learner.credit.joined=True there is no separate prefix credit",
        ),
        (
            ["resampler.fork_at=prompt", "learner.credit.prefix=false"],
            "with resampler.fork_at='prompt' there is no prefix",
        ),
        (
            ["resampler.fork_at=observation"],
            "resampler.ranking='confidence': must be 'entropy_rise' with resampler.fork_at='observation'",
        ),
        (
            ["resampler.min_distinct_calls=5"],
            "resampler.min_distinct_calls=5: at most resampler.k=4",
        ),
        (
            ["resampler={min_distinct_calls: 2, fork_at: prompt}"],
            "resampler.min_distinct_calls=2: continuations of resampler.fork_at='prompt'",
        ),
        (
            [
                "resampler={trigger: {success_above: 0.5}, fork_at: observation, ranking: entropy_rise}",
                "learner.credit.joined=true",
            ],
            "resampler.trigger={'name': 'all_wrong', 'success_above': 0.5}: "
            "resampler.fork_at='observation' forks whatever the outcomes",
        ),
        (
            ["algorithm=grpo", "resampler.trigger=quantile"],
            "resampler.trigger='quantile': means nothing with algorithm='grpo'",
        ),
        (
            [
                "resampler={trigger: quantile, fork_at: observation, ranking: entropy_rise}",
                "learner.credit.joined=true",
            ],
            "resampler.trigger={'name': 'quantile', 'success_above': 0.0, 'quantile': 0.5}: "
            "resampler.fork_at='observation' forks whatever the outcomes",
        ),
        (
            ["resampler={fork_at: observation, ranking: entropy_rise}"],
            "learner.credit.joined=False: must be True",
        ),
        (
            ["rollout.outages={search: [[1, 2]]}"],
            "rollout.outages.search: no tool of that name in tools.tools (image_zoom_in)",
        ),
        (
            ["rollout.outages={image_zoom_in: [[3, 2]]}"],
            "[3, 2]: expected the first and the last step, counted from 1",
        ),
        (
            ["evaluation.tools={image_zoom_in: {}}"],
            "evaluation.tools.image_zoom_in: is in tools.tools too",
        ),
        (
            ["evaluation.tools={finder: {kind: image_search}}"],
            "evaluation.tools.finder.options.index: Field required",
        ),
    ],
)
def test_switches_that_make_no_sense_together_are_one_line(overrides, message):
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEMO, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tools_of_evaluations_are_opened_and_not_part_of_training():
    recipe = load_recipe("deploy/recipes/mixed.yaml")
    assert list(recipe.tools.tools) == ["image_zoom_in", "python", "search"]
    assert list(recipe.all_tools.tools) == [*recipe.tools.tools, "image_search"]
    assert recipe.all_tools.servers == recipe.tools.servers


@pytest.mark.parametrize("name", ["demo", "debug", "mixed"])
def test_the_start_model_of_a_small_recipe_comes_along(name):
    model = Path(load_recipe(f"deploy/recipes/{name}.yaml").model)
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        file.name for file in model.iterdir()
    }


def test_missing_field_and_missing_file():
    with pytest.raises(AxpoError, match="steps: required, but not given"):
        parse_recipe(
            {"name": "x", "model": "m", "task": {"kind": "small_digit"}, "questions_per_step": 1}
        )
    with pytest.raises(AxpoError, match="no such file"):
        load_recipe("no.yaml")


def test_more_ranks_than_the_cluster_holds():
    recipe = load_recipe(DEMO, ["learner.ranks=64"])
    with pytest.raises(
        AxpoError,
        match=r"learner.ranks=64 with 0.4 CPUs each.* need 26.1 CPUs; the Ray cluster has 2",
    ):
        recipe.check_resources(cpus=2, gpus=0)
    with pytest.raises(AxpoError, match=r"need 8 GPUs; the Ray cluster has 0"):
        load_recipe("deploy/recipes/qwen3-vl-2b-thinking.yaml").check_resources(cpus=999, gpus=0)


def test_the_printed_recipe_is_a_recipe_again():
    recipe = load_recipe(DEMO)
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


def jsonl(tmp_path, row):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "good.png")
    Image.new("RGB", (201, 1)).save(tmp_path / "long.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    good = {"question": "Which?", "images": ["good.png"], "answer": 7}
    (tmp_path / "data.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    file = str(tmp_path / "data.jsonl")
    return parse_recipe(
        {
            "name": "x",
            "model": "a/b",
            "task": {"kind": "jsonl", "train": file, "held_out": file},
            "steps": 1,
            "questions_per_step": 1,
            "rollout": {"engine": {"weight_transfer": "shared_memory"}},
        }
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "Which?", "answer": "7"},
            "row 2: images: missing; the row has question, answer",
        ),
        (
            {"question": "Which?", "images": ["good.png"]},
            "row 2: answer: missing; the row has question, images",
        ),
        (
            {"question": "Which?", "images": ["good.png"], "answer": [7]},
            "row 2: answer: expected a text or a number, found '[7]'",
        ),
        (
            {"question": "Which?", "images": [], "answer": 7},
            "row 2: images: expected at least one image",
        ),
        (
            {"question": "Which?", "images": [3], "answer": 7},
            "row 2: images: expected a path, bytes or a data: address, got int",
        ),
        (
            {"question": " ", "images": ["good.png"], "answer": "7"},
            "row 2: question: expected a text",
        ),
        ({"question": "Which?", "images": ["none.png"], "answer": "7"}, "none.png is not there"),
        (
            {"question": "Which?", "images": ["long.png"], "answer": "7"},
            "long.png is 201x1 pixels, the limit of long to short side is 200",
        ),
        (
            {"question": "Which?", "images": ["broken.png"], "answer": "7"},
            "broken.png cannot be read: OSError",
        ),
    ],
)
def test_a_bad_dataset_row_is_named(tmp_path, row, message):
    with pytest.raises(AxpoError, match=r"data\.jsonl, row 2") as caught:
        jsonl(tmp_path, row).check_inputs()
    assert message in str(caught.value)


def test_jsonl_questions(tmp_path):
    task = load_task(
        jsonl(tmp_path, {"question": "What?", "images": ["good.png"], "answer": "no"}).task
    )
    epochs = [[task.train(i).id for i in (0, 1)], [task.train(i).id for i in (2, 3)]]
    assert sorted(epochs[0]) == ["e0-1", "e0-2"]
    assert sorted(epochs[1]) == ["e1-1", "e1-2"]
    assert [q.answer for q in task.held_out()] == ["7", "no"]
    assert task.verify(task.held_out()[1], "So \\boxed{No}.") == 1.0


def test_cli_errors_are_one_line_and_exit_2(monkeypatch, capsys):
    from axpo import cli

    monkeypatch.setattr("sys.argv", ["axpo", "check", DEMO, "--set", "rollout.n=0"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err.strip()
        == f"error {DEMO}: rollout.n=0: Input should be greater than or equal to 2"
    )
