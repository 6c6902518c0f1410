"""Metrics over trained tokens against numbers worked out by hand."""

import math

import numpy as np
import pytest

from learner.stats import summarize

LN2 = math.log(2)


def test_statistics_over_tokens():
    out = summarize(
        {
            "ratio": np.array([1.0, 1.0, 4.0]),
            "gap": np.array([LN2, -LN2]),
            "clipped": np.array([1.0, 0.0]),
            "kl": np.zeros(0),
        }
    )
    assert (out["ratio_mean"], out["ratio_max"], out["ratio_p50"]) == (2, 4, 1)
    # k3 of learner / engine = 2 and 1/2: (1 - ln 2 + ln 2 - 1/2) / 2
    assert out["engine_kl"] == pytest.approx(0.25)
    assert out["logprob_gap_max"] == pytest.approx(LN2)
    assert out["clip_fraction"] == 0.5
    assert "kl" not in out
