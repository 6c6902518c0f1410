"""Weights & Biases, online or into files that `wandb sync` sends later."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from axpo.trackers.tracker import (
    Numbers,
    Session,
    Sink,
    Table,
    Tracker,
    folder,
    set_aside,
    trackers,
)


@trackers.register("wandb")
class WeightsAndBiases(Tracker):
    """Weights & Biases. Offline it writes RUN/wandb: `wandb sync RUN/wandb/offline-run-*`."""

    package: ClassVar[str] = "wandb"

    project: str = "axpo"
    entity: str | None = Field(None, description="user or team; None: the key's own")
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = Field(
        None, description="None: what WANDB_MODE says, else online"
    )
    start_s: float = Field(90.0, gt=0, description="seconds until a start online is given up")

    def open(self, session: Session) -> Sink:
        """Begin the run, or go on with it.

        Online the server keeps the steps that it has. Offline nothing can be taken back, so a
        resume writes the whole run anew, with the same id.
        """
        offline = (self.mode or os.environ.get("WANDB_MODE")) == "offline"
        path = folder(session, "wandb").parent  # it makes a folder `wandb` itself
        if offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            set_aside(list((path / "wandb").glob("offline-run-*")))
        import wandb

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            name=session.name,
            id=session.id or secrets.token_hex(6),
            dir=str(path),
            mode=self.mode,
            resume=None if offline else "allow",
            config=dict(session.recipe),
            settings=wandb.Settings(console="off", silent=True, init_timeout=self.start_s),
        )
        sink = _Run(wandb, run)
        if offline:
            self.refill(sink, session.history)
        return sink


class _Run:
    def __init__(self, wandb: Any, run: Any) -> None:
        self.id = str(run.id)
        self._wandb, self._run = wandb, run

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def table(self, step: int, table: Table) -> None:
        rows = [list(row) for row in table.rows]
        made = self._wandb.Table(
            columns=list(table.columns), data=rows, allow_mixed_types=True, optional=True
        )
        self._run.log({"trajectories": made}, step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update({f"summary/{name}": v for name, v in summary.items()})
        self._run.finish(exit_code=0 if summary is not None else 1)
