"""Evaluations on a scripted pool: what is written, what is set aside, how one goes on."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest

from axpo.errors import AxpoError
from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.measure import measure
from axpo.evaluation.plan import Asked, Plan, load_questions
from axpo.evaluation.results import Results, read_evaluation
from axpo.report.evaluation import render_evaluation
from axpo.tasks.judge import PROMPT_HASH, Judge, Judgement, judges
from rollout_workers.trajectory import EndReason, Group, LazyImage, UnusableQuestion
from tests.axpo.helpers import QUESTION_IMAGE, TOKENS, decode, direct, zooming
from tests.axpo.tasks.faulty_judge import FAULTS, TIMEOUT_S, endpoint, random_faults, serving

SAMPLES = 4


class Doubles(Benchmark):
    """Twenty questions: what is twice the number?"""

    name = "doubles"
    needs_judge = True

    @property
    def expected(self):
        return 20

    def items(self, data):
        for number in range(20):
            yield Item(
                id=str(number),
                text=f"What is twice {number}?",
                images=(LazyImage(lambda: QUESTION_IMAGE),),
                accepted=(str(2 * number),),
                categories={"parity": "odd" if number % 2 else "even"},
            )

    def score(self, item, answer):
        if "?" in answer:
            return Score(None, {"f1": 0.5})
        return Score(answer == item.accepted[0], {"f1": float(answer == item.accepted[0])})


class YesMan(Judge):
    """Says what it is told to."""

    name = "yes-man"
    right: bool | None = True

    def judge(self, question, accepted, answer):
        return Judgement(self.right, "Yes." if self.right else "", "" if self.right else "no reply")


class Pool:
    """Answers question i right on its first i % 5 samples, with a tool on odd samples."""

    def __init__(self, answers=None, stop_after=None, ends=()):
        self.asked, self._answers, self._stop = [], answers or {}, stop_after
        self._ends = dict(ends)

    def ready(self):
        return TOKENS

    def outcomes(self, questions, step, n, *, temperature, evaluating):
        assert (step, n, evaluating) == (0, SAMPLES, True)
        # They finish in another order than they were asked.
        for count, question in enumerate(sorted(questions, key=lambda q: q.id[::-1])):
            if count == self._stop:
                raise KeyboardInterrupt
            self.asked.append(question.id)
            if self._ends.get(question.id) == "unusable":
                yield UnusableQuestion(f"question {question.id}: its picture cannot be read")
            else:
                yield self._group(question, n)

    def _group(self, question, n):
        number = int(question.id.partition("/")[2])
        rollouts = []
        for index in range(n):
            made = (zooming if index % 2 else direct)(index, 0.0, question=question.id)
            right = index < number % 5
            text = self._answers.get(question.id, question.answer if right else "no")
            made = replace(made, answer=text)
            if question.id in self._ends:
                made = replace(made, end=self._ends[question.id], reward=None)
            rollouts.append(made)
        shown = replace(question, images=(QUESTION_IMAGE,))
        return Group(shown, tuple(rollouts), 0)


def plan(tmp_path, judge="exact"):
    judge = judges.parse(judge) if isinstance(judge, str) else judge
    return Plan((Doubles(),), tmp_path, SAMPLES, 1.0, judge)


def run(the_plan, out, pool):
    asked, _ = load_questions(the_plan)
    settings = {**the_plan.to_json()}

    @contextmanager
    def engines(task):
        yield pool, decode

    with Results(out, settings, [one.to_json() for one in asked]) as results:
        rows, numbers = measure(the_plan, asked, results, engines, lambda *_: None)
        summary = {
            "model": "m",
            "judge": the_plan.judge.describe(),
            "samples": SAMPLES,
            "temperature": 1.0,
            "seed": 0,
            "tools": ["image_zoom_in"],
            "limit": None,
            "doubts": [],
            "command": "axpo eval",
            "commit": None,
            "versions": {},
            **numbers,
        }
        results.finish(rows, summary)
    return summary["benchmarks"]["doubles"]


def test_every_sample_is_a_line_and_the_numbers_are_those_of_a_hand(tmp_path):
    part = run(plan(tmp_path), tmp_path / "out", Pool())
    summary, questions, rows = read_evaluation(tmp_path / "out")
    assert summary["benchmarks"]["doubles"] == part
    assert [row["question"] for row in questions] == [str(number) for number in range(20)]
    assert [(row["question"], row["sample"]) for row in rows] == [
        (str(number), sample) for number in range(20) for sample in range(SAMPLES)
    ]
    first = rows[4]
    assert (first["answer"], first["right"], first["by"]) == ("2", True, "rule")
    assert (first["used_tools"], first["tokens"], first["end"]) == (False, 5, "answered")
    # Questions have 0, 1, 2, 3, 4, 0, 1 ... right samples of 4.
    assert part["pass1"]["value"] == pytest.approx((0 + 1 + 2 + 3 + 4) / 4 / 5)
    # Of 2 samples: 1 - C(4 - c, 2) / C(4, 2) = 0, 1/2, 5/6, 1, 1.
    assert part["pass2"]["value"] == pytest.approx((0 + 1 / 2 + 5 / 6 + 1 + 1) / 5)
    assert part["pass4"]["value"] == pytest.approx(4 / 5)
    assert part["pass1"]["low"] < part["pass1"]["value"] < part["pass1"]["high"]
    assert part["tool_use"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    # Samples 1 and 3 use a tool: right on 0, 0, 1, 1, 2 of them.
    assert part["pass1_given_tool"]["value"] == pytest.approx((0 + 0 + 1 + 1 + 2) / 10)
    assert part["f1"]["value"] == part["pass1"]["value"]
    assert part["ends"] == {"answered": 80}
    # Even questions: 0, 2, 4, 6, 8 ... have 0, 2, 4, 1, 3 right samples.
    assert part["categories"]["parity"]["even"]["pass1"]["value"] == pytest.approx(10 / 4 / 5)
    assert (part["questions"], part["measured"], part["expected"]) == (20, 20, 20)


def test_an_evaluation_that_was_interrupted_goes_on_and_ends_alike(tmp_path):
    whole = run(plan(tmp_path), tmp_path / "whole", Pool())
    cut = Pool(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        run(plan(tmp_path), tmp_path / "cut", cut)
    file = tmp_path / "cut" / "results.jsonl"
    # A kill may leave half a question, and half a line.
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 7 * SAMPLES
    file.write_text("".join(lines[:-2]) + lines[-2][:40])
    rest = Pool()
    assert run(plan(tmp_path), tmp_path / "cut", rest) == whole
    assert set(rest.asked) | set(cut.asked) == {f"doubles/{number}" for number in range(20)}
    assert len(rest.asked) == 20 - 6
    for name in ("results.jsonl", "questions.jsonl", "summary.json"):
        one, other = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert one.read_text() == other.read_text(), name
    # A third time there is nothing to ask.
    assert run(plan(tmp_path), tmp_path / "cut", None) == whole


def test_a_question_that_is_set_aside_counts_nowhere_and_is_asked_again(tmp_path):
    ends = {"doubles/4": EndReason.TOOL_ERROR, "doubles/9": "unusable"}
    part = run(plan(tmp_path), tmp_path / "out", Pool(ends=ends))
    assert (part["questions"], part["measured"]) == (20, 18)
    assert part["set_aside"] == {
        "counts": {"infrastructure": 1, "unusable": 1},
        "reasons": {
            "doubles/4": "tool_error",
            "doubles/9": "its picture cannot be read",
        },
    }
    # Both have 4 right samples of 4.
    assert part["pass1"]["value"] == pytest.approx((4 * 10 - 8) / 4 / 18)
    again = Pool()
    assert run(plan(tmp_path), tmp_path / "out", again)["measured"] == 20
    assert sorted(again.asked) == ["doubles/4", "doubles/9"]


def test_a_judge_decides_what_the_rules_leave_open(tmp_path):
    answers = {"doubles/0": "zero?"}
    part = run(plan(tmp_path), tmp_path / "exact", Pool(answers))
    assert part["judged_by"] == {"exact": 4, "rule": 76}
    assert part["pass1"]["value"] == pytest.approx(40 / 80)
    part = run(plan(tmp_path, YesMan()), tmp_path / "yes", Pool(answers))
    assert part["judged_by"] == {"rule": 76, "yes-man": 4}
    assert part["pass1"]["value"] == pytest.approx(44 / 80)
    row = read_evaluation(tmp_path / "yes")[2][0]
    assert (row["answer"], row["right"], row["reply"]) == ("zero?", True, "Yes.")


def test_an_answer_without_a_verdict_is_never_a_zero_and_is_judged_again(tmp_path):
    answers = {"doubles/0": "zero?"}
    part = run(plan(tmp_path, YesMan(right=None)), tmp_path / "out", Pool(answers))
    assert part["set_aside"] == {
        "counts": {"unjudged": 1},
        "reasons": {"doubles/0": "no reply"},
    }
    assert part["pass1"]["value"] == pytest.approx(40 / 4 / 19)
    part = run(plan(tmp_path, YesMan()), tmp_path / "out", None)
    assert (part["measured"], part["set_aside"]["counts"]) == (20, {})


def test_a_judge_that_refuses_stops_the_evaluation_and_no_answer_is_lost(tmp_path):
    class Refusing(YesMan):
        name = "yes-man"

        def judge(self, question, accepted, answer):
            raise AxpoError("judge: refuses the key in JUDGE_KEY")

    answers = {f"doubles/{number}": "that?" for number in range(9)}
    with pytest.raises(AxpoError, match="refuses the key"):
        run(plan(tmp_path, Refusing()), tmp_path / "out", Pool(answers))
    assert not (tmp_path / "out" / "summary.json").exists()
    assert run(plan(tmp_path, YesMan()), tmp_path / "out", None)["measured"] == 20


def test_a_judge_of_the_users_own_that_fails_gives_no_verdict(tmp_path):
    class Failing(YesMan):
        name = "yes-man"

        def judge(self, question, accepted, answer):
            raise KeyError("verdict")

    part = run(plan(tmp_path, Failing()), tmp_path / "out", Pool({"doubles/0": "zero?"}))
    reasons = {"doubles/0": "KeyError: 'verdict'"}
    assert part["set_aside"] == {"counts": {"unjudged": 1}, "reasons": reasons}


def test_no_score_depends_on_how_the_judge_fails(tmp_path):
    # The server says yes to even numbers; every other question is left to it.
    answers = {f"doubles/{number}": f"is it {number}? {number}" for number in range(0, 20, 2)}
    answers |= {f"doubles/{number}": f"is it {number}? {number}" for number in (1, 5)}
    parts, rows = [], []
    for seed in range(3):
        with serving(random_faults(seed, FAULTS) if seed else lambda number: None) as server:
            out = tmp_path / str(seed)
            judge = endpoint(server, cache=str(tmp_path / f"cache {seed}"), timeout_s=TIMEOUT_S)
            parts.append(run(plan(tmp_path, judge), out, Pool(answers)))
            rows.append((out / "results.jsonl").read_text())
            # Four equal samples of each of 12 questions.
            assert sorted(server.verdicts.values()) == [1] * 12
    assert parts[0] == parts[1] == parts[2]
    assert rows[0] == rows[1] == rows[2]
    assert parts[0]["judged_by"] == {f"m, prompt {PROMPT_HASH}": 48, "rule": 32}


def test_an_empty_answer_is_wrong_without_a_judge(tmp_path):
    answers = {f"doubles/{number}": text for number, text in enumerate(["", "  ", None])}
    part = run(plan(tmp_path, YesMan()), tmp_path / "out", Pool(answers))
    assert part["judged_by"] == {"rule": 80}
    assert part["pass1"]["value"] == pytest.approx((40 - 3) / 80)


def test_a_benchmark_that_fails_on_a_question_sets_it_aside(tmp_path):
    class Broken(Doubles):
        def score(self, item, answer):
            return super().score(item, answer) if item.id != "3" else 1 / 0

    part = run(replace(plan(tmp_path), benchmarks=(Broken(),)), tmp_path / "out", Pool())
    reasons = part["set_aside"]["reasons"]
    assert reasons == {"doubles/3": "ZeroDivisionError: division by zero"}


def test_other_settings_or_another_process_are_refused_and_nothing_is_overwritten(tmp_path):
    out = tmp_path / "out"
    run(plan(tmp_path), out, Pool())
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    other = replace(plan(tmp_path), temperature=0.0)
    with pytest.raises(AxpoError, match=r"started with temperature=1.0, now 0.0: choose another"):
        run(other, out, Pool())
    with Results(out, plan(tmp_path).to_json(), []), pytest.raises(AxpoError, match="is in use by"):
        run(plan(tmp_path), out, Pool())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(AxpoError, match="there is something else in it"):
        run(plan(tmp_path), tmp_path / "mine", Pool())
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    after = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    assert after["results.jsonl"] == before["results.jsonl"]
    assert after["summary.json"] == before["summary.json"]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    def full(self, name, rows):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Results, "_append", full)
        with pytest.raises(AxpoError, match="No space left on device; nothing is lost"):
            run(plan(tmp_path), tmp_path / "out", Pool())
    assert run(plan(tmp_path), tmp_path / "out", Pool())["measured"] == 20


def test_half_a_character_is_written_and_read_back(tmp_path):
    answers = {"doubles/0": "half \ud800?", "doubles/1": "nächste"}
    run(plan(tmp_path), tmp_path / "out", Pool(answers))
    rows = read_evaluation(tmp_path / "out")[2]
    assert (rows[0]["answer"], rows[4]["answer"]) == ("half \ud800?", "nächste")
    assert "nächste" in (tmp_path / "out" / "results.jsonl").read_text()
    assert render_evaluation(tmp_path / "out").exists()


def test_a_benchmark_that_cannot_be_read_is_one_line_beside_the_others(tmp_path):
    class Broken(Doubles):
        def items(self, data):
            raise KeyError("column")

    class Typed(Doubles):
        def items(self, data):
            return ["no item"]

    for benchmark, message in ((Broken(), "KeyError: 'column'"), (Typed(), "AttributeError: ")):
        with pytest.raises(AxpoError, match=message) as refused:
            load_questions(replace(plan(tmp_path), benchmarks=(benchmark, Doubles())))
        assert "\n" not in str(refused.value)


def test_two_questions_of_one_id_are_refused(tmp_path):
    class Twice(Doubles):
        def items(self, data):
            yield from super().items(data)
            yield from super().items(data)

    with pytest.raises(AxpoError, match="doubles: two rows have the id '0'"):
        load_questions(replace(plan(tmp_path), benchmarks=(Twice(),)))


def test_a_benchmark_of_the_users_own_is_found_by_its_path(tmp_path):
    found = benchmarks.parse("tests.axpo.evaluation.maps:ThreeMaps")
    asked, doubts = load_questions(replace(plan(tmp_path), benchmarks=(found,), limit=2))
    assert [one.key for one in asked] == ["tests.axpo.evaluation.maps:ThreeMaps/" + n for n in "01"]
    assert doubts == []
    assert found.score(asked[0].item, "\\boxed{north}").right is True
    assert found.score(asked[0].item, "south").right is False


def test_the_page_shows_the_table_the_answers_and_their_crops(tmp_path):
    run(plan(tmp_path), tmp_path / "out", Pool({"doubles/0": "<script>alert(1)</script>"}))
    page = render_evaluation(tmp_path / "out").read_text()
    before, _, table = page.partition('<table class="rates">')
    assert "50.0 (35.0–65.0)" in table
    assert "50.0 (" not in before
    # Of these questions the paper says nothing.
    assert "Quoted from the paper" not in page
    assert "What is twice 19?" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    # The picture of the questions and the crop of the zooms, embedded once each.
    assert page.count("data:image/") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")
    kept = [json.loads(line) for line in (tmp_path / "out/trajectories.jsonl").open()]
    assert sorted(record["question_id"] for record in kept) == [f"doubles/{n}" for n in range(6)]


def test_the_page_calls_an_answer_without_a_verdict_neither_right_nor_wrong(tmp_path):
    answers = {"doubles/0": "zero?"}
    run(plan(tmp_path, YesMan(right=None)), tmp_path / "out", Pool(answers))
    page = render_evaluation(tmp_path / "out").read_text()
    row = page.partition("<td>What is twice 0?</td>")[2].partition("</tr>")[0]
    assert row.count("no verdict") == 4
    assert "wrong" not in row
    # Also where the rollouts are shown.
    rollouts = page.partition("<b>What is twice 0?</b>")[2].partition("<b>What is twice 1?</b>")[0]
    assert rollouts.count("no verdict") == 4
    assert "✗ wrong" not in rollouts


def test_a_question_is_named_apart_from_those_of_other_benchmarks():
    item = Item("7", "?", (), ("x",))
    assert Asked(Doubles(), item, 0).key == "doubles/7" == item.question("doubles").id
