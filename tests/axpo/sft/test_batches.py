"""Batches of fine-tuning are functions of their step; stages are named by what they depend on."""

import numpy as np
import pytest

from axpo.config import parse_recipe
from axpo.errors import AxpoError
from axpo.sft.batches import Batches, TaskExamples
from axpo.sft.fine_tune import _check_mix, _stages
from axpo.tasks import Example
from axpo.tasks.embedded.small_product import SmallProductConfig
from rollout_workers.chat import Chat
from rollout_workers.trajectory import Question

MODEL = "axpo/models/qwen3-vl-tiny"
TASK = SmallProductConfig(held_out=1).load()
SCHEMA = {"type": "function", "function": {"name": "python", "parameters": {}}}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(MODEL)


class Recorded:
    """Examples that note what they are asked for."""

    def __init__(self, examples):
        self.examples, self.asked = examples, []

    def example(self, kind, index):
        self.asked.append((kind, index))
        return self.examples.example(kind, index)


def test_a_batch_is_of_one_kind_and_goes_on_where_the_last_one_ended(chat):
    examples = Recorded(TaskExamples(TASK, chat, [SCHEMA], stage=1))
    batches = Batches(examples, {"numbers": 3, "codes": 1}, 2, "0/1")
    items = batches.items(5)
    assert len(items) == 2
    assert examples.asked == [(batches.kind(5), 10), (batches.kind(5), 11)]
    kinds = [batches.kind(step) for step in range(200)]
    assert 0.65 < kinds.count("numbers") / 200 < 0.85  # 3 of 4


def test_every_stage_has_examples_and_kinds_of_its_own(chat):
    texts = [TaskExamples(TASK, chat, [], stage).example("codes", 0)[0].text for stage in (1, 2)]
    assert texts == [TASK.example("codes", stage << 32).question.text for stage in (1, 2)]
    mix = {"numbers": 1, "codes": 1}
    drawn = []
    for seed in ("0/1", "0/2"):
        batches = Batches(TaskExamples(TASK, chat, [], 1), mix, 1, seed)
        drawn.append([batches.kind(step) for step in range(50)])
    assert drawn[0] != drawn[1]


def test_only_lessons_in_calling_show_the_prompt_of_calls(chat):
    examples = TaskExamples(TASK, chat, [SCHEMA], stage=1)
    prompts = {}
    for kind in ("codes", "numbers"):
        _, trajectory = examples.example(kind, 0)
        prompts[kind] = chat.decode(trajectory.prompt_ids)
    assert '"name": "python"' in prompts["codes"]
    assert "careful visual assistant" in prompts["codes"]
    assert "<|im_start|>system" not in prompts["numbers"]


def recipe(tmp_path, stages, seed=0):
    return parse_recipe(
        {
            "name": "x",
            "model": MODEL,
            "seed": seed,
            "task": {"kind": "small_product"},
            "steps": 1,
            "questions_per_step": 1,
            "rollout": {"engine": {"weight_transfer": "shared_memory"}},
            "logging": {"root": str(tmp_path)},
            "sft": {"output": str(tmp_path / "out"), "stages": stages},
        }
    )


def stage(steps, **more):
    return {"steps": steps, "batch_size": 1, "lr": 1e-3} | more


def folders(loaded):
    tasks = [loaded.stage_task(settings).load() for settings in loaded.sft.stages]
    return [one.folder.name for one in _stages(loaded, loaded.model, tasks)]


def test_a_later_stage_does_not_rename_the_earlier_ones(tmp_path):
    before = folders(recipe(tmp_path, [stage(1), stage(2), stage(3)]))
    after = folders(recipe(tmp_path, [stage(1), stage(5), stage(3)]))
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert before[2] != after[2]  # it starts from another model
    assert [name.endswith("-last") for name in before] == [False, False, True]
    assert (
        folders(recipe(tmp_path, [stage(1)], seed=1))[0] != folders(recipe(tmp_path, [stage(1)]))[0]
    )


def test_a_kind_that_the_task_lacks_is_named(tmp_path):
    loaded = recipe(tmp_path, [stage(1, mix={"sheet": 1})])
    with pytest.raises(AxpoError, match=r"sft\.stages\.mix: no examples of kind sheet"):
        _check_mix(loaded.sft.stages[0], loaded.task.load())


def test_items_of_a_batch_weigh_as_their_tokens(chat):
    batches = Batches(TaskExamples(TASK, chat, [], 1), {"results": 1}, 3, "0/1")
    items = batches.items(0)
    lengths = np.array([item.mask.sum() for item in items])
    np.testing.assert_allclose([item.weight for item in items], lengths / lengths.sum())


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("I see <|image_pad|>.\n</think>\n\n7", r"a turn: '<\|image_pad\|>' in its text"),
        ("7<|im_end|>\n<|im_start|>user\nAnd?", r"a turn: '<\|im_end\|>' in its text"),
        ("\ud83d</think>7", "half a surrogate pair"),
    ],
)
def test_what_a_teacher_writes_and_no_policy_may_write_is_named(chat, turn, said):
    class Teacher:
        system = None

        def example(self, kind, index):
            return Example(Question("q", "?", (), "7"), [turn], with_tools=False)

    with pytest.raises(AxpoError, match=rf"^example 3 of kind 'x' of the task: .*{said}"):
        TaskExamples(Teacher(), chat, [], stage=1).example("x", 3)
