"""Numbers of a GPU are written down, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gpu.figures import Figures


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    Figures(recording=False, file=file).add("head", gib=1.0)
    assert not file.exists()


def test_numbers_are_added_to_those_of_other_tests(tmp_path: Path) -> None:
    file = tmp_path / "results" / "gpu.json"
    figures = Figures(recording=True, file=file)
    figures.add("head", gib=1.0)
    figures.add("sync", seconds=2.0)
    figures.add("head", gib=1.23456)
    written = json.loads(file.read_text())
    assert written["figures"] == {"head": {"gib": 1.235}, "sync": {"seconds": 2.0}}
    assert written["versions"]["torch"]


def test_no_numbers_of_a_gpu_are_here_that_none_has_given() -> None:
    """A result names its GPU; see `docs/gpu.md`."""
    file = Path("benchmarks/results/gpu.json")
    assert not file.exists() or json.loads(file.read_text())["gpus"]
