"""The summary that ends a run."""

from __future__ import annotations

import json

import pytest

from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from axpo.record.summary import duration, read_summary, write_summary
from tests.axpo.record.helpers import NUMBERS


def test_summary_ends_a_run(tmp_path):
    ended = NUMBERS | {"algorithm": "axpo"}
    with RunDirectory.create("a", {}, tmp_path) as run:
        assert read_summary(run.path) is None
        assert write_summary(run.path, ended) == ended
    assert read_summary(run.path) == ended
    with pytest.raises(AxpoError, match="has ended"):
        RunDirectory.resume(run.path)
    with pytest.raises(AxpoError, match="has ended"):  # the refusal released the lock
        RunDirectory.resume(run.path)


def test_a_summary_has_all_its_numbers_in_their_order(tmp_path):
    backwards = dict(reversed(NUMBERS.items()))
    write_summary(tmp_path, {"zoom/pass1_end": 0.5} | backwards)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert list(written) == [*NUMBERS, "zoom/pass1_end"]
    del backwards["tokens"]
    with pytest.raises(ValueError, match="tokens missing"):
        write_summary(tmp_path, backwards)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (7505, "2 h 5 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
