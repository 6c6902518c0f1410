"""Record what a rank computes and communicates, with torch's profiler.

A trace is a Chrome trace, for https://ui.perfetto.dev or chrome://tracing, and a table of the
operators that took longest. GPU kernels are in it if there is a GPU (not run on one yet).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

OPERATORS = 40
"""Rows of the table."""


class Profiling:
    """The profiler of one rank. While it records, the rank is slower."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._profile: profile | None = None

    def begin(self) -> None:
        """Record from now on."""
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def end(self, folder: Path) -> None:
        """Stop recording, and write `rank_<n>.json.gz` and `rank_<n>.txt`.

        Args:
            folder: is made if it is not there.
        """
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(folder / f"rank_{self._rank}.json.gz"))
        on_gpu = torch.cuda.is_available()
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=OPERATORS)
        (folder / f"rank_{self._rank}.txt").write_text(table, encoding="utf-8")
