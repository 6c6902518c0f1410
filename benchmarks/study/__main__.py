"""The study: arms x seeds of one recipe, and what came of them as a table and figures.

    python -m benchmarks.study --minutes M [--study FILE --results FOLDER --runs FOLDER]

Runs what has no result yet for M minutes, then renders what there is; --minutes 0 renders only. Beside the folder of results it writes
table.md, figure.png (end values) and curves.png (against steps and against tokens).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.curves import curves
from benchmarks.study.render import by_arm, figure, markdown, read_results, table
from benchmarks.study.runs import load_jobs, run_pending

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes",
        type=float,
        required=True,
        metavar="M",
        help="stop after so long; the next call goes on",
    )
    parser.add_argument(
        "--study",
        type=Path,
        default=HERE / "arms.yaml",
        metavar="FILE",
        help="recipe, seeds and arms (arms.yaml)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=HERE / "results",
        metavar="FOLDER",
        help="one raw result a run, kept in git",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/study"),
        metavar="FOLDER",
        help="run directories (runs/study)",
    )
    options = parser.parse_args(arguments)
    jobs = load_jobs(options.study)
    failed = run_pending(jobs, options.results, options.runs, options.minutes)
    for name in failed:
        print(f"{name}: failed", file=sys.stderr)
    arms = by_arm(read_results(options.results), list(dict.fromkeys(job.arm for job in jobs)))
    if arms:
        rows = table(arms)
        (options.results.parent / "table.md").write_text(markdown(rows), encoding="utf-8")
        print(markdown(rows))
        figure(rows, options.results.parent / "figure.png")
        curves(arms, options.results.parent / "curves.png")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
