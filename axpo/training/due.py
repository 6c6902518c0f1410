"""Say what is due after a training step: an evaluation, a checkpoint, the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from axpo.config import Recipe
from axpo.training.stop import StopRequest


class End(Enum):
    """Why a run ends after a step."""

    NOT_FINITE = "too many updates in a row were not finite"
    COMPLETE = "all steps of the recipe are done"
    STOPPED = "the process was asked to end"


class Due:
    """Answer what is due after step `done` (counted from 1), by the recipe and what happened."""

    def __init__(self, recipe: Recipe, stop: StopRequest) -> None:
        self._recipe = recipe
        self._stop = stop

    def evaluation(self, done: int) -> bool:
        """Return whether held-out questions are asked now."""
        every = self._recipe.evaluation.every
        return self._is_last(done) or (every > 0 and done % every == 0)

    def end(self, done: int, update: Mapping[str, float]) -> End | None:
        """Return why the run ends now; None if it goes on.

        Args:
            done: the steps that are done.
            update: the numbers of the step's update; `skipped_in_a_row` is read.
        """
        # First of all: a run that broke in its last step must not look complete.
        if update.get("skipped_in_a_row", 0) >= self._recipe.learner.max_skipped:
            return End.NOT_FINITE
        if self._is_last(done):
            return End.COMPLETE
        return End.STOPPED if self._stop.requested else None

    def checkpoint(self, done: int, end: End | None) -> bool:
        """Return whether a checkpoint is written now."""
        return end is not None or done % self._recipe.checkpoint_every == 0

    def _is_last(self, done: int) -> bool:
        return done == self._recipe.steps
