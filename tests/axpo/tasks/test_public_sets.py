"""The recipe entries of docs/data.md read public training sets as they are downloaded."""

import re
from pathlib import Path

import pytest
import yaml

from axpo.errors import AxpoError
from axpo.tasks import TaskConfig
from axpo.tasks.dataset import DatasetConfig
from rollout_workers.trajectory import pixels
from tests.axpo.tasks import public_sets

PAGE = Path("docs/data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```yaml\n# task: (\w+)\n(.*?)```", re.DOTALL)
ENTRIES = dict(BLOCK.findall(PAGE))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return public_sets.write(tmp_path_factory.mktemp("sets") / "data")


@pytest.fixture
def entry(data, monkeypatch):
    """Return a function that gives the task of an entry of the page."""
    monkeypatch.chdir(data.parent)

    def load(name: str) -> DatasetConfig:
        fields = yaml.safe_load(ENTRIES[name])
        # The report of the decontamination is another test's.
        fields["train"].pop("without")
        task = TaskConfig.registry.validate(fields)
        assert isinstance(task, DatasetConfig)
        assert task.check_inputs() == []
        return task

    return load


def asked(task: DatasetConfig, count: int) -> list:
    """Return an epoch of training questions in the order of their rows."""
    loaded = task.load()
    questions = [loaded.train(index) for index in range(count)]
    assert not any(question.fault for question in questions)
    return sorted(questions, key=lambda question: int(question.id.rpartition("-")[2]))


def test_deepeyes_photographs(entry):
    task = entry("deepeyes")
    assert len(task.load().held_out()) == 1
    first = asked(task, 99)[0]
    # The data's own prompt, with another format of calls, is not shown.
    assert first.text == "What is the colour of cup 0?\nA. red\nB. blue\nC. green"
    assert (first.answer, [pixels(image).shape for image in first.images]) == (
        "B. blue",
        [(64, 96, 3)],
    )


def test_deepeyes_mathematics(entry):
    task = entry("deepeyes_math")
    assert [(one.text, one.answer) for one in asked(task, 99)][:2] == [
        ("What is 0 + 1?", "1"),
        ("What is 1 + 1?", "2"),
    ]


def test_visual_probe(entry):
    task = entry("visualprobe")
    questions = asked(task, 8)
    assert (questions[0].text, questions[0].answer) == ("\nWhich word is on board 0?", "Word 0.")
    # Paths begin with the name of the set.
    assert pixels(questions[3].images[0]).shape == (64, 96, 3)
    assert len(task.load().held_out()) == 2


def test_mmk12(entry):
    task = entry("mmk12")
    questions = asked(task, 6)
    assert questions[2].answer == "$25^\\circ$"
    loaded = task.load()
    rewards = [
        loaded.verify(questions[2], f"\\boxed{{{text}}}") for text in ("25", "25^\\circ", "52")
    ]
    assert rewards == [1, 1, 0]
    assert len(loaded.held_out()) == 2


def test_virl39k(entry):
    task = entry("virl39k")
    # Of eight rows two are solved never or nearly always; the last four are MMK12's.
    questions = asked(task, 72)
    assert [question.id for question in questions[:7]] == [
        f"e0-{row}" for row in (2, 3, 4, 5, 6, 7, 10)
    ]
    assert [len(question.images) for question in questions[:6]] == [2, 1, 0, 1, 2, 1]
    assert questions[0].text == "How many squares are in figure 1?"
    assert questions[0].answer == "1"  # out of its box


def test_fvqa(entry):
    task = entry("fvqa")
    questions = asked(task, 6)
    # What needs no search is left out.
    assert [question.id for question in questions] == [f"e0-{row}" for row in (2, 3, 4, 6, 7, 8)]
    assert questions[0].text == "Who built tower 1 (train)?"
    assert questions[0].answer == '["Ann Builder 1", "A. Builder", "Builder"]'
    assert questions[1].answer == "Ann Builder 2"
    assert len(task.load().held_out()) == 2


@pytest.mark.parametrize("size", ["2b", "4b", "8b"])
def test_the_papers_recipes_have_the_entries_of_the_page(size):
    recipe = yaml.safe_load(Path(f"deploy/recipes/paper-{size}.yaml").read_text(encoding="utf-8"))
    families = recipe["task"]["families"]
    assert list(families) == ["deepeyes", "visualprobe", "mmk12", "virl39k", "fvqa"]
    for name, family in families.items():
        assert family["task"] == yaml.safe_load(ENTRIES[name])


def test_every_entry_is_tested():
    assert set(ENTRIES) == {"deepeyes", "deepeyes_math", "visualprobe", "mmk12", "virl39k", "fvqa"}


def test_a_run_sets_aside_the_row_that_was_chosen(entry):
    task = entry("fvqa").load()
    task.set_aside("e0-3", "torn")
    faults = {question.id: question.fault for question in (task.train(index) for index in range(6))}
    assert [name for name, fault in faults.items() if fault] == ["e0-3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"question": "prompt.3.content"}}, "prompt.3.content: nothing at '3' of ["),
        ({"columns": {"question": "prompt.first"}}, "prompt.first: nothing at 'first' of ["),
        ({"columns": {"answer": "reward.truth"}}, "reward.truth: missing; the row has"),
        (
            {"columns": {"answer_is_boxed": True}},
            "reward_model.candidate_answers: expected \\boxed",
        ),
        ({"train": {"keep": {"class": ["a"]}}}, "class: missing; the row has"),
        ({"train": {"keep": {"category": ["none"]}}}, "none of 8 rows is left by category"),
        ({"train": {"keep": {"category": {"at_most": 1}}}}, "none of 8 rows is left by category"),
        ({"train": {"without": "none.jsonl"}}, "none.jsonl: no such report; write it with: axpo"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(entry, data, changes, message):
    spec = yaml.safe_load(ENTRIES["fvqa"])
    spec["train"].pop("without")
    for name, fields in changes.items():
        spec[name] |= fields
    with pytest.raises(AxpoError) as error:
        TaskConfig.registry.validate(spec).check_inputs()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("condition", [{}, [], {"among": []}, {"at_least": "x"}, 3])
def test_a_condition_that_says_nothing_is_refused(condition):
    fields = {"path": "a.jsonl", "keep": {"category": condition}}
    with pytest.raises(ValueError, match="keep"):
        TaskConfig.registry.validate({"kind": "dataset", "train": fields, "held_out": "a.jsonl"})
