"""Run a study, arms x seeds of one recipe, and render what came of it as a table and figures.

    python -m benchmarks.study --minutes M [--study FILE --results FOLDER --runs FOLDER]

It runs what has no result yet for M minutes, then renders what there is; --minutes 0 renders only.
Beside the folder of results it writes table.md, figure.png (end values) and curves.png (against
steps and against tokens).
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
    """Run and render a study; return exit code 1 if a run failed."""
    options = _parser().parse_args(arguments)
    jobs = load_jobs(options.study)
    failed = run_pending(jobs, options.results, options.runs, options.minutes)
    for name in failed:
        print(f"{name}: failed", file=sys.stderr)
    # The table has the arms in the order of the study's file.
    arms = list(dict.fromkeys(job.arm for job in jobs))
    render(options.results, arms)
    return 1 if failed else 0


def render(results: Path, arms: Sequence[str]) -> None:
    """Write the table and the figures of a folder of results beside it, and print the table."""
    runs = by_arm(read_results(results), arms)
    if not runs:
        return
    rows = table(runs)
    (results.parent / "table.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    figure(rows, results.parent / "figure.png")
    curves(runs, results.parent / "curves.png")


def _parser() -> argparse.ArgumentParser:
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
        help="one raw result per run, kept in git",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/study"),
        metavar="FOLDER",
        help="run directories (runs/study)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
