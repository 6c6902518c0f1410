"""`python -m benchmarks.study --minutes M`: runs what is left of the study for M minutes, then renders what there is (0: renders only)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.study.render import figure, markdown, read_results, values
from benchmarks.study.runs import load_jobs, run_pending

HERE = Path(__file__).parent


def main() -> int:
    """Exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="stop after so long; the run in progress is continued next time")
    parser.add_argument("--study", type=Path, default=HERE / "arms.yaml", help="recipe, seeds and arms")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of one raw result a run")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the run directories")
    options = parser.parse_args()
    jobs = load_jobs(options.study)
    failed = run_pending(jobs, options.results, options.runs, options.minutes)
    table = values(read_results(options.results), list(dict.fromkeys(job.arm for job in jobs)))
    if table:
        (options.results.parent / "table.md").write_text(markdown(table), encoding="utf-8")
        print(markdown(table))
    for name in failed:
        print(f"{name}: failed", file=sys.stderr)
    if table:
        figure(table, options.results.parent / "figure.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
