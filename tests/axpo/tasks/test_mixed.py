"""Families are drawn by weight, have their own verifiers and examples, and metrics each."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from axpo.config import parse_recipe
from axpo.errors import AxpoError
from axpo.evaluation.diagnostics import by_family, by_kind, diagnostics, evaluate_groups
from axpo.evaluation.held_out import held_out
from axpo.record.summary import before_after, label
from rollout_workers.trajectory import Question
from tests.axpo.helpers import TOKENS, direct, zooming
from tests.axpo.helpers import group as make_group

FAMILIES = {
    "zoom": {"weight": 2, "task": {"kind": "small_digit", "held_out": 2}},
    "reasoning": {"task": {"kind": "small_product", "held_out": 1}},
    "search": {"task": {"kind": "small_fact", "held_out": 1}},
}


def recipe(families=FAMILIES, stages=()):
    fields = {
        "name": "x",
        "model": "a/b",
        "steps": 1,
        "questions_per_step": 1,
        "rollout": {"engine": {"weight_transfer": "shared_memory"}},
    }
    sft = {"sft": {"output": "out", "stages": stages}} if stages else {}
    return parse_recipe(fields | sft | {"task": {"kind": "mixed", "families": families}})


def test_questions_are_drawn_by_weight_and_are_their_familys_own():
    config = recipe().task
    config.check_inputs()
    task, zoom = config.load(), config.families["zoom"].task.load()
    questions = [task.train(index) for index in range(80)]
    share = sum(question.info["family"] == "zoom" for question in questions) / 80
    assert 0.4 < share < 0.6  # 2 of 4
    index, question = next((i, q) for i, q in enumerate(questions) if q.info["family"] == "zoom")
    assert (question.id, question.text, question.answer) == (
        f"zoom/train-{index}",
        zoom.train(index).text,
        zoom.train(index).answer,
    )
    assert task.train(index).id == question.id
    assert [q.id for q in task.held_out()] == [
        "zoom/test-0",
        "zoom/test-1",
        "reasoning/test-0",
        "search/test-0",
    ]
    assert all(task.verify(q, f"\\boxed{{{q.answer}}}") == 1.0 for q in questions[:20])


def test_examples_are_asked_for_by_family():
    task = recipe().task.load()
    question, turns, tools = task.example("search/queries", 3)
    assert tools
    assert question.info["family"] == "search"
    assert turns[0].startswith('{"query": "wine ')
    for kind in ("demonstration", "zoom/queries", "none/demonstration"):
        with pytest.raises(KeyError):
            task.example(kind, 0)


def test_a_stage_changes_one_field_of_one_family():
    change = {"families": {"search": {"task": {"teacher": {"care": 1.0}}}}}
    loaded = recipe(
        stages=[
            {
                "steps": 1,
                "batch_size": 1,
                "lr": 1,
                "mix": {"search/demonstration": 1},
                "task": change,
            }
        ]
    )
    families = loaded.stage_task(loaded.sft.stages[0]).families
    assert (families["search"].task.teacher.care, families["search"].task.held_out) == (1.0, 1)
    assert families["zoom"] == loaded.task.families["zoom"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"zoom": {"task": {"kind": "small_digit", "digits": 3}}},
            "recipe: task.families.zoom.task.digits: unknown key",
        ),
        (
            {"zoom": {"weight": 0, "task": {"kind": "small_fact"}}},
            "task.families.zoom.weight=0: Input should be greater than 0",
        ),
        ({"a/b": {"task": {"kind": "small_fact"}}}, "String should match pattern"),
    ],
)
def test_a_bad_field_is_named(change, message):
    with pytest.raises(AxpoError) as caught:
        recipe(change)
    assert message in str(caught.value)


def of(family, number, *rollouts):
    made = make_group(rollouts, question=str(number))
    return replace(made, question=replace(made.question, id=f"{number}", info={"family": family}))


def test_metrics_of_each_family_stand_beside_the_total():
    groups = [
        of("zoom", 0, zooming(0, 1.0), direct(1, 0.0)),
        of("zoom", 1, zooming(0, 0.0), direct(1, 0.0)),
        of("search", 2, direct(0, 1.0)),
    ]
    metrics = by_family(groups, lambda of_one: diagnostics(of_one, TOKENS))
    assert (
        metrics["zoom/pass1"],
        metrics["zoom/tool_use_rate"],
        metrics["zoom/tool_all_wrong_rate"],
    ) == (
        0.25,
        0.5,
        0.5,
    )
    assert (metrics["search/pass1"], metrics["search/tool_use_rate"]) == (1.0, 0.0)
    assert (
        by_family([make_group([direct(0, 1.0)])], lambda of_one: diagnostics(of_one, TOKENS)) == {}
    )
    assert label("zoom/tool_all_wrong_rate") == "zoom: Tool all-wrong"


def test_an_evaluation_has_both():
    questions = [
        Question("0", "?", (), "7", {"family": "zoom"}),
        Question("1", "?", (), "7", {"family": "search"}),
    ]

    class Pool:
        def outcomes(self, questions, step, n, temperature, evaluating):
            for question, reward in zip(reversed(questions), (1.0, 0.0), strict=True):
                made = make_group(
                    [direct(i, reward, question.id) for i in range(4)], question=question.id
                )
                yield replace(made, question=question)

        def ready(self):
            return TOKENS

    task = SimpleNamespace(held_out=lambda: questions)
    found = held_out(Pool(), task, SimpleNamespace(samples=4, temperature=1.0))
    numbers = found.numbers
    assert (
        numbers["pass1"],
        numbers["zoom/pass1"],
        numbers["search/pass1"],
        numbers["dropped"],
    ) == (0.5, 0.0, 1.0, 0.0)
    assert found.counts == {"zoom/": [[4, 0, 0, 0]], "search/": [[4, 4, 0, 0]]}


def of_kind(number, kind, *rollouts, **info):
    made = make_group(rollouts, question=str(number))
    return replace(made, question=replace(made.question, info={"kind": kind} | info))


RIGHT, WRONG = [direct(i, 1.0) for i in range(4)], [zooming(i, 0.0) for i in range(4)]


def test_numbers_by_kind():
    groups = [
        of_kind(0, "frame", *WRONG),
        of_kind(1, "two hops", *RIGHT),
        of_kind(2, "frame", *RIGHT),
    ]
    metrics = by_kind(groups, lambda of_one: evaluate_groups(of_one, TOKENS))
    assert metrics["kind/frame/pass1"] == 0.5
    assert metrics["kind/frame/tool_use"] == 0.5
    assert metrics["kind/two_hops/pass1"] == 1.0
    assert by_kind(groups[:1], lambda of_one: evaluate_groups(of_one, TOKENS)) == {}
    # A user's column may be called `kind` and hold numbers, which are no kinds of questions.
    numbered = [of_kind(0, 3, *WRONG), of_kind(1, 4, *WRONG)]
    assert by_kind(numbered, lambda of_one: {"n": 1.0}) == {}


def evaluated(groups):
    """Return the numbers of a held-out evaluation that gives these groups."""
    pool = SimpleNamespace(
        outcomes=lambda questions, step, n, temperature, evaluating: iter(groups),
        ready=lambda: TOKENS,
    )
    asked = [replace(group.question, images=()) for group in groups]
    task = SimpleNamespace(held_out=lambda: asked)
    return held_out(pool, task, SimpleNamespace(samples=4, temperature=1.0)).numbers


def test_an_evaluation_has_numbers_by_kind_within_a_family():
    kinds = [of_kind(0, "frame", *WRONG), of_kind(1, "hops", *RIGHT), of_kind(2, "frame", *RIGHT)]
    assert evaluated(kinds)["kind/frame/pass1"] == 0.5
    families = [
        of_kind(0, "frame", *WRONG, family="zoom"),
        of_kind(1, "control", *RIGHT, family="zoom"),
        of_kind(2, "easy", *RIGHT, family="search"),
    ]
    numbers = evaluated(families)
    assert numbers["zoom/pass1"] == 0.5
    assert numbers["zoom/kind/control/pass1"] == 1.0
    assert numbers["zoom/kind/frame/tool_use"] == 1.0
    assert not [name for name in numbers if name.startswith(("kind/", "search/kind"))]


def test_a_report_names_kinds_and_compares_the_whole_alone():
    assert label("zoom/kind/control/pass1") == "zoom/kind/control: Pass@1"
    of_kinds = {"kind/control/pass1_start": 0.1, "kind/control/pass1_end": 0.2}
    whole = {"pass1_start": 0.3, "pass1_end": 0.4}
    assert before_after(of_kinds | whole) == [("Pass@1", 0.3, 0.4)]
    # With `evaluation.start: false`.
    assert before_after({"pass1_start": None, "pass1_end": 0.4}) == [("Pass@1", None, 0.4)]
