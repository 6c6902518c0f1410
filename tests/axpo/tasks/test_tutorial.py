"""The code of docs/your-task.md is used as the page says, up to the start of training."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from axpo.config import load_recipe
from axpo.errors import AxpoError
from rollout_workers.chat import Chat
from rollout_workers.trajectory import pixels

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/your-task.md"
MODEL = "axpo/models/qwen3-vl-tiny"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with every file of the page."""
    for name, content in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).write_text(content)
    (tmp_path / "axpo").symlink_to(ROOT / "axpo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("dots", "judge"):
        sys.modules.pop(name, None)


def test_the_class(folder):
    recipe = load_recipe("dots.yaml")
    recipe.check_inputs()
    task, chat = recipe.task.load(), Chat.load(MODEL)
    assert [question.answer for question in task.held_out()] == [
        question.answer for question in recipe.task.load().held_out()
    ]
    zooms = hits = 0
    for index in range(200):
        question, turns, _ = task.example("demonstration", index)
        zooms += len(turns) == 3
        hits += len(turns) == 3 and "unknown" not in turns[2]
        reward = task.verify(question, turns[-1].partition("</think>")[2])
        assert reward == float("unknown" not in turns[-1])
        if len(turns) == 3:
            assert turns[1][1][0].shape == (192, 192, 3)
            # The dots that the crop shows are those that the question is about.
            red = (turns[1][1][0][:, :, 1] == 0).any()
            assert red == (reward == 1)
    assert 40 < zooms < 80
    assert hits < zooms / 2
    for turn in turns:
        if isinstance(turn, str):
            assert len(chat.encode_policy(turn)) < recipe.rollout.max_turn_tokens


def test_the_rows(folder):
    runpy.run_path("write_rows.py")
    recipe = load_recipe("dots.yaml", [f"task={yaml.safe_load(Path('rows.yaml').read_text())}"])
    recipe.check_inputs()
    task = recipe.task.load()
    question = task.held_out()[0]
    assert pixels(question.images[0]).shape == (384, 384, 3)
    assert task.verify(question, f"\\boxed{{{question.answer}.0}}") == 1.0
    file = Path("data/dots/train.jsonl")
    lines = file.read_text().splitlines()
    lines[16] = re.sub(r'"solution": \d', '"solution": "two"', lines[16])
    file.write_text("\n".join(lines))
    fault = "data/dots/train.jsonl, row 17: solution: expected a number, found 'two'"
    assert recipe.check_inputs() == [fault]
    # The page shows what a command prints.
    assert f"warning set aside in a run: {fault}\n" in PAGE.read_text()


def test_the_verifier(folder):
    Path("data").mkdir()
    row = {"question": "How long is it?", "answer": "3", "unit": "cm"}
    Path("data/rows.jsonl").write_text(json.dumps(row))
    fields = {
        "kind": "dataset",
        "train": "data/rows.jsonl",
        "held_out": "data/rows.jsonl",
        "columns": {"images": [], "info": "unit"},
        "verifier": "judge:within_a_unit",
    }
    config = load_recipe("dots.yaml", [f"task={fields}"]).task
    config.check_inputs()
    task = config.load()
    (question,) = task.held_out()
    rewards = [task.verify(question, answer) for answer in ("It is 3 cm", "It is 3 m", None)]
    assert rewards == [1, 0, 0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.path=dots:Dot", "task.path='dots:Dot': dots has no Dot"),
        ("task.path=nowhere:Dots", "task.path='nowhere:Dots': cannot import nowhere"),
        (
            "task.options={least: 1}",
            "task.path='dots:Dots': TypeError: .*unexpected keyword argument 'least'",
        ),
        (
            "task.options={most: 9999}",
            "task.path='dots:Dots': its first question: ValueError: Sample larger than population",
        ),
        ("task.path=dots:final_turn", "task.path='dots:final_turn': TypeError"),
        ("task.option={}", "task.option: unknown key"),
    ],
)
def test_a_class_that_cannot_be_used(folder, override, message):
    with pytest.raises(AxpoError, match=message) as caught:
        load_recipe("dots.yaml", [override]).check_inputs()
    assert "\n" not in str(caught.value)
