"""The checkpoints of a run: which there are, which one a resume goes back to, which are deleted.

The learner writes a checkpoint under the name `.step_0001.partial` and then renames it, so that a
folder with a step's name is complete (`learner.manifest`). Its files may still be damaged later.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from axpo.record.files import by_step, step_name
from learner import manifest


class Checkpoint(NamedTuple):
    """One complete checkpoint: the learner's state after `step` steps."""

    step: int
    folder: Path

    def damage(self) -> str | None:
        """Return what is wrong with its files, one line; None if nothing is. Reads every byte."""
        try:
            manifest.verify(self.folder)
        except manifest.DamagedCheckpoint as error:
            return str(error)
        return None

    def set_aside(self) -> None:
        """Rename the folder: it is not a checkpoint any more, but people can still look at it."""
        aside = self.folder.with_name(f".damaged-{self.folder.name}")
        # An earlier resume may have set this step aside too: one copy is enough to look at.
        shutil.rmtree(aside, ignore_errors=True)
        self.folder.rename(aside)


class Checkpoints:
    """The folder `checkpoints` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Return where the learner saves the checkpoint after `step`."""
        return self.folder / step_name(step)

    def complete(self) -> list[Checkpoint]:
        """Return the complete checkpoints in order of steps.

        A save that never finished has another name and is not among them.
        """
        found = by_step(self.folder)
        return [Checkpoint(step, folder) for step, folder in found if folder.is_dir()]

    def latest(self) -> Checkpoint | None:
        """Return the last complete checkpoint; None if there is none."""
        complete = self.complete()
        return complete[-1] if complete else None

    def delete_partial(self) -> None:
        """Delete what killed saves left behind. Nothing may be saving."""
        manifest.clean(self.folder)

    def prune(self, keep: int, scores: Mapping[int, float]) -> None:
        """Delete all checkpoints but the last `keep` and the one with the best score.

        Args:
            keep: how many of the last checkpoints stay.
            scores: the held-out Pass@1 of each evaluated step. Of equal ones the later is best.
        """
        complete = self.complete()
        evaluated = [step for step, _ in complete if step in scores]
        best = max(evaluated, key=lambda step: (scores[step], step), default=None)
        # `manifest.remove` renames before it deletes: a kill leaves no half of a checkpoint.
        for step, folder in complete[:-keep]:
            if step != best:
                manifest.remove(folder)
