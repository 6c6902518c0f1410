"""Comparisons of expressions: what they find, their limits, and who waits for whom.

`tests/axpo/test_limited.py` has the tests of the processes in which they run.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from axpo.limited.client import Limited, OverLimits
from axpo.tasks import comparing, mathematics

pytest.importorskip("math_verify")

ENDLESS = "9^{9^{9^9}}"
BOMBS = [
    ENDLESS,
    "10000000!",
    "2^{2^{40}}",  # memory
    "\\prod_{n=1}^{99999999}n",
    "(" * 35 + "4" + ")" * 35,
    "\\sqrt" * 300 + "4",
    "1/" * 900 + "1",
    "\ud83d\0",
]

# The script of the verifier with half of its CPU time, so that eight bombs cost less.
SCRIPT = f"""
import runpy
from axpo.limited import server
server.CPU_S = 1
runpy.run_path({comparing.__file__!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def comparer(tmp_path_factory):
    script = tmp_path_factory.mktemp("comparing") / "script.py"
    script.write_text(SCRIPT)
    comparer = Limited("math", str(script))
    yield comparer
    comparer.close()


@pytest.fixture
def verifier(monkeypatch, comparer):
    monkeypatch.setattr(mathematics, "_comparer", comparer)


def compare(comparer, truths, answer):
    try:
        return comparer.ask([truths, answer])
    except OverLimits:
        return "limits"


def test_equal_and_different_expressions(comparer):
    assert compare(comparer, ["\\frac{1}{2}"], "0.5") == "equal"
    assert compare(comparer, ["x^2+2x+1"], "(x+1)^2") == "equal"
    assert compare(comparer, ["3"], "4") == "different"
    assert compare(comparer, ["3", "x+1"], "1+x") == "equal"
    assert compare(comparer, ["$$"], "4") == "unreadable"


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        ("\\frac{1}{3}", "1/3", "0.333"),
        ("2\\sqrt{3}", "\\sqrt{12}", "3.46"),
        ("\\pi", "\u03c0", "3.14159"),
        ("2x\u00b2", "2x^2", "2x2"),
        ("2\u00d7x", "2x", "x^2"),
        ("(1, 2)", "\uff081\uff0c2\uff09", "(2, 1)"),
        ("\\{1, 2\\}", "\\{2, 1\\}", "\\{1\\}"),
        ("[1, 2)", "x \\in [1, 2)", "(1, 2)"),
        ("\\pm 5", "5, -5", "5"),
        ("3, 4", "4, 3", "3"),
        ("7", "7", "3 4"),
        ("3, 7", "7, 3", "3, 3 4"),
        ("-3, 1.5", "1.5, -3", "$-3  1.5$"),
        ("1,234", "1234", "1 234"),
        ("x = 3", "3", "x = 4"),
        ("y = 2x + 1", "2x + 1", "2x - 1"),
        (
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}",
            "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}",
        ),
    ],
)
@pytest.mark.usefixtures("verifier")
def test_forms_of_answers(truth, right, wrong):
    assert mathematics.equal(truth, right)
    assert not mathematics.equal(truth, wrong)


@pytest.mark.parametrize(
    "hedge",
    ["5 \\text{ or } 6", "5, 6", "\\{5, 6\\}", "5; 6", "5 = 6", "5 \\cup 6", "[5, 6]", "5 \\pm 1"],
)
@pytest.mark.usefixtures("verifier")
def test_no_answer_is_right_for_two_truths(hedge):
    assert not (mathematics.equal("5", hedge) and mathematics.equal("6", hedge))


def test_no_answer_waits_for_one_that_cannot_be_compared(comparer):
    compare(comparer, ["4"], "4")
    begin = threading.Barrier(len(BOMBS) + 1)

    def burn(bomb):
        begin.wait()
        return compare(comparer, ["4"], bomb)

    with ThreadPoolExecutor(len(BOMBS)) as threads:
        bombs = [threads.submit(burn, bomb) for bomb in BOMBS]
        begin.wait()
        # It needs 0.02 s of CPU time, and five of the bombs need a second each.
        assert compare(comparer, ["4"], "4") == "equal"
        assert not all(bomb.done() for bomb in bombs)
        # Each is wrong, and none is a failure.
        assert {bomb.result() for bomb in bombs} <= {"limits", "different"}
        # The formula reader may meet the limit of memory itself, and then call a bomb different.
        assert bombs[0].result() == "limits"


def test_what_is_too_long_or_too_deep_is_not_even_compared(monkeypatch):
    monkeypatch.setattr(mathematics, "_comparer", None)
    for answer in ("(" * 500, "x" * 2001, "{[(" * 20):
        assert mathematics.equal("4", answer) is False
    # Brackets side by side are not deep.
    assert mathematics.within_limits("(1)" * 400)


@pytest.mark.usefixtures("verifier")
def test_a_truth_that_no_answer_can_match_is_told():
    for truth in ("$$", "", "(" * 50, "x" * 2001, "?", "\\frac{", "x =", "3 4", "3 4, 5"):
        with pytest.raises(ValueError, match="expected a formula"):
            mathematics.check(truth)
    for truth in ("\\frac{\\sqrt{3}}{2}", "\\text{yes}", "\\infty", "12\\text{ cm}"):
        mathematics.check(truth)
    for truth in ("(1, 2]", "3, 4", "1,234"):
        mathematics.check(truth)
    with pytest.raises(RuntimeError, match="no expression"):
        mathematics.equal("$$", "4")


@pytest.mark.slow
def test_more_comparisons_than_places_are_all_answered(comparer):
    # 10 endless ones share the 8 places of the long lane.
    with ThreadPoolExecutor(20) as threads:
        answers = ["4", ENDLESS] * 10
        replies = list(threads.map(lambda answer: compare(comparer, ["4"], answer), answers))
    assert replies == ["equal", "limits"] * 10
