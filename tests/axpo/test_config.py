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
from axpo.config.moved import MOVED
from axpo.errors import AxpoError
from learner.config import Serving
from rollout_workers.image_rule import ImagesConfig

DEMO = "deploy/recipes/demo.yaml"


def needs_nothing(recipe: Path) -> bool:
    """Return whether a recipe checks as it is; the others are in test_paper_recipes.py."""
    return recipe.stem != "embedded" and not recipe.stem.startswith("paper-")


@pytest.mark.parametrize(
    "recipe", sorted(str(p) for p in Path("deploy/recipes").glob("*.yaml") if needs_nothing(p))
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
        assert (objective.clip_low, objective.clip_high) == (0.2, 0.4)
        assert recipe.learner.kl_beta == 1e-3


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
            "resampler.ranking='confidence': must be 'entropy_rise' with "
            "resampler.fork_at='observation'",
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
                "resampler={fork_at: observation, ranking: entropy_rise}",
                "resampler.trigger.success_above=0.5",
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.schedule=cosine"], "learner.total_steps=0: the cosine schedule needs more"),
        (
            ["learner.objective=dr_grpo"],
            "learner.objective.loss_length=0: the objective divides by it",
        ),
        (["learner.lora={rank: 0}"], "learner.lora.rank=0: Input should be greater"),
        (["resampler.budget={name: adaptive}"], "resampler.budget: expected target_recovery or"),
        (["resampler.min_distinct_calls=9"], "resampler.min_distinct_calls=9: at most resampler.k"),
        (
            ["learner.credit={joined: true, prefix: false}"],
            "learner.credit.prefix=False: with learner.credit.joined=True",
        ),
        (["rollout.gpus_per_worker=2"], "rollout.gpus_per_worker=2: must equal rollout.engine."),
        (
            ["rollout.outages={image_zoom_in: [[1, 2], [3, 2]]}"],
            "rollout.outages.image_zoom_in.1=[3, 2]: expected the first and the last step",
        ),
        (["tools.mcp=[{}]"], "tools.mcp.0: give each server a command or a url"),
        (["tools.tools={zoom: {kind: 7}}"], "tools.tools.zoom.kind=7: Input should be a valid"),
        (["task.teacher={care: 2}"], "task.teacher.care=2: Input should be less than or equal"),
        (
            ["sft={output: a, stages: [{steps: 1, batch_size: 1, lr: 1, task: {bordr: 1}}]}"],
            "sft.stages.0.task.bordr: unknown key",
        ),
    ],
)
def test_a_message_begins_with_the_whole_place_of_the_field(overrides, message):
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEMO, overrides)
    assert str(caught.value).startswith(f"{DEMO}: {message}")
    assert "\n" not in str(caught.value)


def test_several_bad_fields_are_a_line_each():
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEMO, ["rollout.n=1", "learner.lr=0", "learner.objective={clip_high: 0}"])
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        f"{DEMO}: rollout.n",
        f"{DEMO}: learner.lr",
        f"{DEMO}: learner.objective.clip_high",
    ]


@pytest.mark.parametrize("key", MOVED)
def test_a_key_that_has_moved_is_one_line_wherever_it_is_given(key, tmp_path):
    recipe = yaml.safe_load(Path(DEMO).read_text())
    section, name = key.split(".")
    recipe[section] = recipe.get(section, {}) | {name: 0.5}
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump(recipe))
    for source, overrides in ((str(file), []), (DEMO, [f"{key}=0.5"])):
        with pytest.raises(AxpoError) as caught:
            load_recipe(source, overrides)
        assert str(caught.value) == f"{source}: {key}: {MOVED[key]}"


def test_a_tasks_key_that_has_moved_is_found_in_stages_and_families():
    stage = {"steps": 1, "batch_size": 1, "lr": 1.0, "task": {"tolerance": 0.1}}
    recipe = yaml.safe_load(Path("deploy/recipes/mixed.yaml").read_text())
    recipe["task"]["families"]["zoom"]["task"]["tolerance"] = 0.1
    recipe["sft"]["stages"] = [stage]
    with pytest.raises(AxpoError) as caught:
        parse_recipe(recipe, source="old.yaml")
    assert str(caught.value).splitlines() == [
        f"old.yaml: {place}.tolerance: {MOVED['task.tolerance']}"
        for place in ("task.families.zoom.task", "sft.stages.0.task")
    ]


def test_every_new_place_of_a_moved_key_is_a_key():
    """What a message names can be set there."""
    settings = [
        "learner.objective={name: dr_grpo, clip_low: 0.1, clip_high: 0.3, loss_length: 9}",
        "rollout.temperature=0.9",
        "rollout.engine.tensor_parallel_size=2",
        "resampler.budget={name: adaptive, ratio: 0.5, target_recovery: 0.5, target_cost_s: 1, "
        "call_costs: {search: 1}}",
        "resampler.trigger={name: quantile, quantile: 0.3, success_above: 0.1}",
    ]
    recipe = load_recipe(DEMO, settings)
    assert recipe.serving == Serving(
        temperature=0.9, weight_transfer="shared_memory", ranks_per_engine=2
    )
    load_recipe(
        DEMO,
        ["task={kind: dataset, train: a, held_out: b, verifier: {name: numeric, tolerance: 0.1}}"],
    )


def test_what_the_learner_must_know_of_the_engines_is_derived():
    large = load_recipe(
        "deploy/recipes/qwen3-vl-8b-thinking-two-nodes.yaml",
        ["rollout.gpus_per_worker=2", "rollout.engine.tensor_parallel_size=2"],
    )
    assert large.serving == Serving(
        weight_transfer="nccl", ranks_per_engine=2, images=ImagesConfig(max_pixels=262144)
    )


@pytest.mark.parametrize(
    "settings",
    [
        *(["resampler.k=2"], ["resampler.budget.ratio=0.5"], ["resampler.schedule=batch"]),
        *(["resampler.ranking=random"], ["resampler.deadline_s=9"]),
        *(["learner.credit.tool_bonus=0.5"], ["learner.credit.baseline=centered"]),
    ],
)
def test_grpo_takes_how_much_and_in_which_order_axpo_would_fork(settings):
    assert load_recipe(DEMO, ["algorithm=grpo", *settings]).most_forks == 0


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("resampler.min_distinct_calls=2", "resampler.min_distinct_calls=2"),
        ("resampler.trigger.success_above=0.5", "resampler.trigger.success_above=0.5"),
        ("resampler.budget={name: adaptive, target_cost_s: 1}", "resampler.budget='adaptive'"),
        ("resampler.fork_at=tests.axpo.user_variants:with_default", "resampler.fork_at='tests."),
        ("learner.credit.prefix=false", "learner.credit.prefix=False"),
    ],
)
def test_grpo_refuses_what_changes_how_axpo_forks(setting, field):
    with pytest.raises(AxpoError, match="means nothing with algorithm='grpo'") as caught:
        load_recipe(DEMO, ["algorithm=grpo", setting])
    assert str(caught.value).startswith(f"{DEMO}: {field}")


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
    task = jsonl(
        tmp_path, {"question": "What?", "images": ["good.png"], "answer": "no"}
    ).task.load()
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


def test_the_size_of_images_stands_once_in_a_recipe():
    recipe = load_recipe(DEMO, ["images={min_pixels: 4096, max_pixels: 8192}"])
    limits = ImagesConfig(min_pixels=4096, max_pixels=8192)
    assert recipe.serving.images == recipe.images == limits
    zoom = recipe.all_tools.tools["image_zoom_in"]
    assert zoom.max_image_pixels == 8192
    own = load_recipe(
        DEMO,
        ["images.max_pixels=8192", "tools.tools={image_zoom_in: {max_image_pixels: 4096}}"],
    )
    assert own.all_tools.tools["image_zoom_in"].max_image_pixels == 4096
    assert load_recipe(DEMO).all_tools == load_recipe(DEMO).tools


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.engine.options={mm_processor_kwargs: {max_pixels: 9}}",
            "rollout.engine.options.mm_processor_kwargs: would reach the engines only, and the "
            "learner would train on other images; set images.min_pixels and images.max_pixels "
            "instead",
        ),
        (
            "images={min_pixels: 9000, max_pixels: 8000}",
            "images.min_pixels=9000: must be at most max_pixels=8000",
        ),
        ("images.max_pixels=0", "images.max_pixels=0: Input should be greater than or equal to 1"),
        (
            "rollout.max_turn_tokens=1025",
            "rollout.max_turn_tokens=1025: must be at most rollout.max_context_tokens=1024, which "
            "holds the whole rollout",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(override, message):
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEMO, [override])
    assert str(caught.value) == f"{DEMO}: {message}"
