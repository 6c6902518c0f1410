"""Three groups whose diagnostics can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

from rollout_workers.trajectory import EndReason, Group
from tests.axpo.helpers import direct, group, resample, zooming

A, B = (0, 0, 100, 100), (50, 50, 300, 300)
"""Two boxes to zoom on."""


def three_groups() -> list[Group]:
    """Return three questions of four rollouts each.

    - First: the tool-using rollouts are all wrong, the others right; one resampled prefix with one
      right continuation of four.
    - Second: half of the tool-using rollouts are right, the others all wrong.
    - Third: no tools, half of the rollouts right; the last ran out of tokens.
    """
    source = zooming(0, 0.0, failures=1)
    continuations = resample(source, [(A, 0.0, 80), (A, 0.0, 80), (B, 1.0, 80), (A, 0.0, 96)])
    cut_off = replace(direct(3, 0.0), end=EndReason.OUT_OF_TOKENS)
    return [
        group([source, zooming(1, 0.0), direct(2, 1.0), direct(3, 1.0)], [continuations]),
        group([zooming(0, 1.0), zooming(1, 0.0), direct(2, 0.0), direct(3, 0.0)]),
        group([direct(0, 1.0), direct(1, 0.0), direct(2, 1.0), cut_off]),
    ]
