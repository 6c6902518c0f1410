"""Kinds of tasks are registered variants, a user's own ones too; faults name the whole field."""

import pickle
import sys

import pytest

from axpo.config import parse_recipe
from axpo.errors import AxpoError

OWN = '''
from axpo.tasks import Task, TaskConfig
from rollout_workers.trajectory import Question


class Sums(Task):
    def __init__(self, most):
        self.most = most

    def train(self, index):
        return Question(str(index), f"{index % self.most} + 1?", (), str(index % self.most + 1))

    def held_out(self):
        return [self.train(index) for index in range(2)]

    def verify(self, question, answer):
        return float(answer == question.answer)


class SumsConfig(TaskConfig):
    """Sums."""

    most: int = 9

    def load(self):
        return Sums(self.most)


class Broken(SumsConfig):
    def load(self):
        return Sums(0)


class Silent(SumsConfig):
    def load(self):
        return object()


def small_sums():
    return Sums(3)


def half(question, answer):
    return 0.5
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module in the working directory."""
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_tasks", None)


def recipe(task):
    fields = {"name": "x", "model": "a/b", "steps": 1, "questions_per_step": 1, "task": task}
    return parse_recipe(fields | {"rollout": {"engine": {"weight_transfer": "shared_memory"}}})


def test_a_configuration_of_ones_own_is_named_by_its_path(own_module):
    spec = {"kind": "own_tasks:SumsConfig", "most": 5}
    loaded = recipe(spec)
    loaded.task.check_inputs()
    assert loaded.task.load().train(7).text == "2 + 1?"  # 7 % 5
    assert loaded.model_dump(mode="json")["task"] == spec
    assert pickle.loads(pickle.dumps(loaded.task)) == loaded.task
    assert recipe("own_tasks:SumsConfig").task.most == 9


def test_a_function_may_stand_for_a_configuration(own_module):
    task = recipe("own_tasks:small_sums").task
    task.check_inputs()
    assert task.load().train(7).text == "1 + 1?"  # 7 % 3


def test_a_family_may_be_of_ones_own(own_module):
    families = {"sums": {"task": {"kind": "own_tasks:SumsConfig", "most": 4}}}
    task = recipe({"kind": "mixed", "families": families}).task.load()
    assert (task.train(3).id, task.train(3).text) == ("sums/3", "3 + 1?")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "own_tasks:Broken",
            "task.kind='own_tasks:Broken': its first question: ZeroDivisionError: ",
        ),
        ("own_tasks:Silent", "task.kind='own_tasks:Silent': no train, held_out, verify, example;"),
        (
            {"kind": "custom", "path": "own_tasks:Sums", "options": {"most": 0}},
            "task.path='own_tasks:Sums': its first question: ZeroDivisionError: ",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_found_before_the_start(own_module, task, message):
    with pytest.raises(AxpoError) as caught:
        recipe(task).task.check_inputs()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


ROWS = {"kind": "dataset", "train": "a.jsonl", "held_out": "a.jsonl"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "small_digit", "digit": -1}, "task.digit=-1: Input should be greater than"),
        ({"kind": "small_digit", "teacher": {"care": 2}}, "task.teacher.care=2: Input should be"),
        ({"kind": "small_digit", "digits": 3}, "task.digits: unknown key"),
        ({"kind": "small_digit", "digit": 100}, "task.digit=100: with its frame 110 pixels wide"),
        ({"kind": "own_tasks:Sums"}, "task.kind='own_tasks:Sums': expected a function of () or a"),
        ({"digit": 22}, "task.kind: required, but not given"),
        (
            {"kind": "mixed", "families": {"zoom": {"task": {"kind": "small_digit", "digit": -1}}}},
            "task.families.zoom.task.digit=-1: Input should be greater than",
        ),
        (
            {"kind": "mixed", "families": {"zoom": {"task": {"kind": "small_digits"}}}},
            "task.families.zoom.task.kind='small_digits': expected one of ",
        ),
        (
            {"kind": "mixed", "families": {"a": {"task": {"kind": "mixed", "families": {}}}}},
            "task.families.a.task.families={}: Dictionary should have at least 1 item",
        ),
        (
            {"kind": "mixed", "families": {"rows": {"task": ROWS | {"verifier": "numeral"}}}},
            "task.families.rows.task.verifier='numeral': expected one of exact, numeric, ",
        ),
        (ROWS | {"verify": "exact"}, "task.verify: moved to task.verifier"),
        (ROWS | {"tolerance": 0.1}, "task.tolerance: moved to task.verifier.tolerance"),
    ],
)
def test_a_bad_field_is_named_in_full(own_module, task, message):
    with pytest.raises(AxpoError) as caught:
        recipe(task)
    assert f"recipe: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixture_cannot_be_a_family():
    inner = {"kind": "mixed", "families": {"zoom": {"task": {"kind": "small_digit"}}}}
    with pytest.raises(AxpoError, match="a family cannot be a mixture itself"):
        recipe({"kind": "mixed", "families": {"inner": {"task": inner}}})


def test_the_name_in_older_recipes_is_written_as_the_one_of_today():
    task = recipe(ROWS | {"kind": "jsonl"}).task
    assert task.spec()["kind"] == "dataset"
    known = [name for name, _ in task.registry.described()]
    assert "dataset" in known
    assert "jsonl" not in known


def test_a_verifier_of_ones_own_travels_by_its_path(own_module):
    task = recipe(ROWS | {"verifier": "own_tasks:half"}).task
    verifier = pickle.loads(pickle.dumps(task.verifier))
    assert verifier.reward(None, "anything") == 0.5
    assert task.spec()["verifier"] == "own_tasks:half"
    verifier.check_truth("any answer of the data will do")
