"""Proposition 1 over a pool that generates nothing.

Which questions count, what is compared, and the numbers by hand.
"""

import asyncio
import json
import sys
from dataclasses import replace

import pytest

from axpo.config import parse_recipe
from benchmarks.study import proposition
from benchmarks.study.proposition import Prefix, markdown, probe, recovery
from rollout_workers.trajectory import EndReason, Question
from tests.axpo.helpers import TOKENS, direct, resample, zooming
from tests.axpo.helpers import group as make_group

BOX = (5, 5, 9, 9)
RECIPE = parse_recipe(
    {
        "name": "x",
        "model": "a/b",
        "task": {"kind": "small_digit"},
        "steps": 1,
        "questions_per_step": 1,
        "rollout": {"engine": {"weight_transfer": "shared_memory"}},
    }
)


class Pool:
    """Gives `rollouts` as sources.

    Of K continuations the first is right; of K new rollouts the last two are, one by a tool, one
    without.
    """

    def __init__(self, *rollouts, broken=False):
        self.rollouts, self.broken, self.asked = rollouts, broken, []

    async def group(self, question, step, n=None):
        self.asked.append(("group", step, n))
        if n is None:
            return make_group(self.rollouts), None
        fresh = [direct(i, 0.0) for i in range(n - 2)]
        return make_group([*fresh, direct(n - 2, 1.0), zooming(n - 1, 1.0)]), None

    async def fork(self, group, request, step):
        self.asked.append(("fork", step, request.rollout, request.prefix_tokens))
        continuations = [(BOX, float(i == 0), 0) for i in range(request.k)]
        made = resample(group.rollouts[request.rollout], continuations)
        if self.broken:
            lost = replace(made.continuations[0], reward=None, end=EndReason.TOOL_ERROR)
            return replace(made, continuations=(lost, *made.continuations[1:]))
        return made


def ask(pool, samples=4):
    return asyncio.run(probe(pool, Question("q", "?", (), "7"), RECIPE, TOKENS, samples))


def test_a_failed_prefix_is_continued_and_its_question_asked_anew():
    sure = zooming(1, 0.0)
    first_turn, *others = sure.segments
    doubtful = replace(first_turn, logprobs=first_turn.logprobs * 2)
    unsure = replace(zooming(2, 0.0), segments=(doubtful, *others))
    pool = Pool(direct(0, 1.0), sure, unsure)
    found = ask(pool)
    assert (found.rollout, found.confidence) == (2, pytest.approx(0.25))
    assert found.continued == (True, False, False, False)
    assert found.called == (False, False, False, True)
    assert found.right == (False, False, True, True)
    # New rollouts: three of one turn of 5 tokens, one that zooms. Continuations generate what
    # follows the tag.
    assert found.fresh_tokens == 3 * 5 + zooming(3, 1.0).policy_tokens
    (continuation,) = resample(unsure, [(BOX, 1.0, 0)]).continuations
    assert found.continued_tokens == 4 * continuation.policy_tokens
    # The new rollouts' seeds are not those of the sources.
    assert pool.asked == [("group", 0, None), ("fork", 0, 2, found.prefix_tokens), ("group", 1, 4)]


def test_a_question_with_a_right_call_or_none_does_not_trigger():
    assert ask(Pool(direct(0, 0.0), zooming(1, 1.0), zooming(2, 0.0))) == "not triggered"
    assert ask(Pool(direct(0, 0.0), direct(1, 0.0))) == "not triggered"


def test_what_infrastructure_broke_is_no_failure():
    assert ask(Pool(replace(direct(0, 0.0), reward=None), zooming(1, 0.0))) == "lost"
    assert ask(Pool(zooming(0, 0.0), broken=True)) == "lost"


def prefix(continued, called, right):
    return Prefix("q", 0, 3, 0.5, continued, 40, called, right, 80)


TWO = [
    prefix((True, True, False, False), (True, False, False, False), (True, True, False, False)),
    prefix((True, False, False, False), (True, True, False, False), (False, False, False, False)),
]


def test_recovery_at_equal_samples():
    one = recovery(TWO, 1)
    # Continued 2/4 and 1/4; new rollouts with a tool and right 1/4 and 0; right at all 2/4 and 0.
    means = {name: value[0] for name, value in one.items()}
    assert means == {"continued": 37.5, "called": 12.5, "difference": 25.0, "any": 25.0}
    # Of two prefixes a draw of two has an end of the interval at either of them.
    assert one["continued"][1:] == (25.0, 50.0)
    assert one["difference"][1:] == (25.0, 25.0)  # both differ by 1/4
    # Two of four: 1 - C(2, 2) / C(4, 2) = 5/6 and 1 - C(3, 2) / C(4, 2) = 1/2; with a tool 1/2
    # and 0.
    two = recovery(TWO, 2)
    assert two["continued"][0] == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert two["called"][0] == pytest.approx(25.0)
    with pytest.raises(ValueError, match="pass_at_k needs"):
        recovery(TWO, 5)


def test_the_table_has_a_row_for_every_doubling():
    lines = markdown(TWO).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| 1", "| 2", "| 4"]
    assert (
        lines[2]
        == "| 1 | 37.5 [25.0, 50.0] | 12.5 [0.0, 25.0] | 25.0 [25.0, 25.0] | 25.0 [0.0, 50.0] |"
    )
    assert lines[-1] == (
        "2 prefixes. New rollouts call a tool in 37.5 [25.0, 50.0] %. "
        "Tokens generated per sample: 10 continued, 20 anew."
    )


def test_the_command_keeps_every_prefix(tmp_path, monkeypatch, capsys):
    outcomes = [TWO[0], "not triggered", "lost", TWO[1]]
    monkeypatch.setattr(proposition, "measure", lambda *_: (outcomes, RECIPE))
    file = tmp_path / "raw.json"
    arguments = f"recipe.yaml --questions 4 --samples 4 --out {file}".split()
    monkeypatch.setattr(sys, "argv", ["proposition", *arguments])
    assert proposition.main() == 0
    raw = json.loads(file.read_text())
    assert (raw["questions"], raw["lost"], len(raw["prefixes"])) == (4, 1, 2)
    assert raw["prefixes"][0]["continued"] == [True, True, False, False]
    assert "| samples |" in capsys.readouterr().out
    monkeypatch.setattr(proposition, "measure", lambda *_: (["not triggered"], RECIPE))
    assert proposition.main() == 1
