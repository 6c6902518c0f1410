"""Two evaluations of the same questions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from axpo.errors import AxpoError
from axpo.eval_cli import run_comparison
from axpo.evaluation.compare import compare


def evaluation(folder, verdicts, samples=1, judge="exact", texts=None):
    """Write the files of an evaluation of the benchmark `b`."""
    folder.mkdir()
    questions, rows = [], []
    for question, right in verdicts.items():
        text = (texts or {}).get(question, f"question {question}")
        questions.append(
            {"benchmark": "b", "question": question, "text": text, "accepted": ["x"]}
            | {"categories": {}, "cluster": question}
        )
        for sample, one in enumerate(right):
            row = {"benchmark": "b", "question": question, "sample": sample, "right": one}
            answer = {
                "answer": f"said {sample} <b> \u202egnp.exe",
                "end": "answered",
                "by": "rule",
                "reply": "",
            }
            rows.append(row | answer)
    summary = {"judge": judge, "samples": samples, "temperature": 1.0, "tools": [], "seed": 0}
    summary["benchmarks"] = {"b": {}}
    for name, content in (("settings", {}), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name, lines in (("questions", questions), ("results", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def test_differences_are_paired_by_question(tmp_path):
    rng = np.random.default_rng(2)
    first = {str(number): [bool(rng.random() < 0.5)] for number in range(80)}
    # B is right wherever A is, and on half of the others.
    second = {name: [one or rng.random() < 0.5] for name, (one,) in first.items()}
    second = {name: [bool(one)] for name, (one,) in second.items()}
    a, b = evaluation(tmp_path / "a", first), evaluation(tmp_path / "b", second)
    found = compare(a, b)
    (one,) = found.differences
    changes = np.array([second[name][0] - first[name][0] for name in first], float)
    assert (one.questions, one.only_one, one.worse) == (80, 0, 0)
    assert one.better == int(changes.sum())
    assert one.difference.value == pytest.approx(changes.mean())
    assert one.second - one.first == pytest.approx(changes.mean())
    other = stats.bootstrap(
        (changes,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert one.difference.low == pytest.approx(other.low, abs=0.008)
    assert one.difference.high == pytest.approx(other.high, abs=0.008)
    assert one.p_value == pytest.approx(2 * 0.5**one.better)
    assert found.average.value == pytest.approx(changes.mean())
    # An evaluation against itself.
    (same,) = compare(a, a).differences
    assert (same.difference.value, same.difference.low, same.difference.high) == (0, 0, 0)
    assert same.p_value == 1.0


def test_with_several_samples_shares_are_compared(tmp_path):
    a = evaluation(tmp_path / "a", {"1": [1, 0], "2": [1, 1], "3": [0, 0]}, 2)
    b = evaluation(tmp_path / "b", {"1": [1, 1], "2": [0, 1], "3": [1, 1]}, 2)
    (one,) = compare(a, b).differences
    assert (one.better, one.worse) == (2, 1)
    assert (one.first, one.second) == (0.5, pytest.approx(5 / 6))


def test_only_questions_that_both_measured_count(tmp_path):
    a = evaluation(tmp_path / "a", {"1": [True], "2": [None], "3": [False], "4": [True]})
    b = evaluation(tmp_path / "b", {"1": [True], "2": [True], "3": [True]}, texts={"3": "other"})
    (one,) = compare(a, b).differences
    assert (one.questions, one.only_one) == (1, 3)


def test_what_else_differs_is_told_and_what_cannot_be_compared_is_one_line(tmp_path):
    a = evaluation(tmp_path / "a", {"1": [True]})
    b = evaluation(tmp_path / "b", {"1": [True]}, judge="gpt")
    assert compare(a, b).warnings == ["judge: exact and gpt"]
    c = evaluation(tmp_path / "c", {"9": [True]})
    with pytest.raises(AxpoError, match="have no question in common"):
        compare(a, c)
    (c / "summary.json").write_text("[" * 100_000)
    with pytest.raises(AxpoError, match=r"summary.json: not the JSON of an evaluation"):
        compare(a, c)
    (c / "summary.json").unlink()
    with pytest.raises(AxpoError, match="has not come to its end; run its command again"):
        compare(a, c)
    with pytest.raises(AxpoError, match="no evaluation"):
        compare(a, tmp_path)


def test_a_comparison_can_be_written_as_numbers_and_a_page(tmp_path, capsys):
    hostile = {"2": "<script>alert(1)</script>"}
    a = evaluation(tmp_path / "a<i>", {"1": [1, 0], "2": [1, 1], "3": [0, 0]}, 2, texts=hostile)
    b = evaluation(tmp_path / "b", {"1": [1, 1], "2": [0, 1], "3": [0, 0]}, 2, texts=hostile)
    out = tmp_path / "out"
    run_comparison(a, b, out, Console(width=200))
    assert f"report {out}/comparison.html" in capsys.readouterr().out
    numbers = json.loads((out / "comparison.json").read_text())
    assert (numbers["first"], numbers["second"]) == (str(a), str(b))
    assert numbers["benchmarks"]["b"]["difference"]["value"] == pytest.approx(0.0)
    assert numbers["changes"] == [
        {"benchmark": "b", "question": "1", "better": True},
        {"benchmark": "b", "question": "2", "better": False},
    ]
    page = (out / "comparison.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "said 0 &lt;b&gt;" in page
    assert "a&lt;i&gt;" in page
    # What turns the direction of writing is shown, and turns nothing.
    assert "\\u202egnp.exe" in page
    assert "\u202e" not in page
    # Lost ones first; what did not change is not listed.
    assert page.index("&lt;script") < page.index("question 1")
    assert "question 3" not in page
    for folder in (out, tmp_path / "a<i>" / "summary.json"):
        before = {file: file.read_bytes() for file in out.iterdir()}
        with pytest.raises(AxpoError, match=r"exists; choose another --out|cannot be written: "):
            run_comparison(a, b, folder, Console())
        assert {file: file.read_bytes() for file in out.iterdir()} == before
    # Without a folder nothing is written.
    run_comparison(a, b, None, Console())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a<i>", "b", "out"]
