"""The nine benchmarks of the AXPO paper, one small class each.

May import `axpo.evaluation.benchmark`, `rows`, `answers` and `formulas`. Importing this package
registers them. Start reading in `vstar.py`, the shortest.

Schemas, splits, prompts and rules are those of the benchmarks' own repositories. Which split the
paper used follows from its numbers: a Pass@4 over N questions is k / N, and all ten published
values fit 304 (MathVision testmini), 501 (DynaMath, one variant), 191 (V*), 106 (VisualProbe Hard),
200 (HR-Bench without rotations), 305 (HR-MMSearch) and 300 (MMSearch). Of Math-VR they do not tell.
"""

from axpo.evaluation.paper import (  # noqa: F401
    dynamath,
    hr_bench,
    hr_mmsearch,
    math_vr,
    mathvision,
    mmsearch,
    visual_probe,
    vstar,
)

SUITE = (
    "mathvision",
    "dynamath",
    "math-vr",
    "vstar",
    "visualprobe-hard",
    "hrbench-4k",
    "hrbench-8k",
    "hr-mmsearch",
    "mmsearch",
)
"""What `--suite paper` measures, in the order of the paper's table."""
