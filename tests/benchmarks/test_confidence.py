"""Confidence against entropy: which tokens are compared, and the correlations by hand."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from benchmarks.study import confidence
from benchmarks.study.confidence import (
    Call,
    call_items,
    calls,
    correlated,
    markdown,
    measure,
    pearson,
    spearman,
)
from rollout_workers.trajectory import tool_call_spans
from tests.axpo.helpers import TOKENS, direct, group, zooming


def test_the_first_call_of_every_rollout_that_calls_is_compared():
    (item,) = call_items([group([direct(0, 1.0), zooming(1, 0.0)])], TOKENS)
    start, stop = tool_call_spans(item.trajectory, TOKENS)[0]
    assert np.flatnonzero(item.mask).tolist() == list(range(start, stop))
    tags = item.trajectory.response_ids[[start, stop - 1]].tolist()
    assert tags == [TOKENS.call_open, TOKENS.call_close]
    # The helper samples every token with probability 1/2. Entropies elsewhere do not count.
    (call,) = calls([item], [np.where(item.mask, 2.0, 9.0).astype(np.float32)])
    assert call == Call("q", 1, stop - start, pytest.approx(0.5), 2.0)


def test_correlations():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, 5 - 2 * x) == pytest.approx(-1.0)
    assert pearson(x, np.array([1.0, 1.0, 1.0, 5.0])) == pytest.approx(6 / np.sqrt(5 * 12))
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    # Ranks 1 2 3 4 and 1.5 1.5 3.5 3.5, both about 2.5: 4 / sqrt(5 * 4).
    assert spearman(x, np.array([7.0, 7.0, 9.0, 9.0])) == pytest.approx(4 / np.sqrt(20))
    assert np.isnan(pearson(x, np.ones(4)))


def test_intervals_are_over_questions():
    # Ten questions, in each the same two calls: any draw of questions has the same correlation,
    # though single calls are few.
    alike = [Call(str(q), i, 3, 0.9 - 0.4 * i, 1.0 + i) for q in range(10) for i in range(2)]
    assert correlated(alike, pearson) == (pytest.approx(1.0),) * 3
    rng = np.random.default_rng(0)
    pairs = rng.uniform(size=(300, 2))
    loose = [Call(str(q), 0, 3, 1 - x, x + y) for q, (x, y) in enumerate(pairs)]
    mean, low, high = correlated(loose, spearman)
    # x against x + y of independent uniforms: Pearson is sqrt(1/2), and Spearman close to it.
    assert 0.55 < low < mean < high < 0.85
    assert "300 calls of 300 questions" in markdown(loose)
    with pytest.raises(ValueError, match="no correlation"):
        correlated([replace(call, entropy=1.0) for call in loose], pearson)


def test_a_run_without_recorded_rollouts_is_refused(tmp_path, monkeypatch, capsys):
    recipe = load_recipe("deploy/recipes/debug.yaml").model_dump(mode="json")
    with RunDirectory.create("run", recipe, tmp_path) as run:
        pass
    with pytest.raises(AxpoError, match="no recorded rollouts"):
        measure(run.path)
    file = tmp_path / "raw.json"
    monkeypatch.setattr(sys, "argv", ["confidence", str(run.path), "--out", str(file)])
    assert confidence.main() == 2
    assert "--rollouts-only" in capsys.readouterr().err
    assert not file.exists()
