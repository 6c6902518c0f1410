"""SwanLab: its cloud or a server of one's own, or files that `swanlab sync` sends later."""

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


@trackers.register("swanlab")
class SwanLab(Tracker):
    """SwanLab. Offline it writes RUN/swanlab: `swanlab sync RUN/swanlab/run-*`."""

    package: ClassVar[str] = "swanlab"

    project: str = "axpo"
    workspace: str | None = Field(None, description="user or organization; None: the key's own")
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = Field(
        None, description="None: what SWANLAB_MODE says, else online"
    )

    def open(self, session: Session) -> Sink:
        """Begin the run, or go on with it.

        Online the server keeps the steps that it has. Offline nothing can be taken back, so a
        resume writes the whole run anew, with the same id.
        """
        offline = (self.mode or os.environ.get("SWANLAB_MODE")) == "offline"
        path = folder(session, "swanlab")
        if offline:
            set_aside(list(path.glob("run-*")))
        import swanlab

        run = swanlab.init(
            project=self.project,
            workspace=self.workspace,
            group=self.group,
            tags=list(self.tags),
            name=session.name,
            id=session.id or secrets.token_hex(10),
            log_dir=str(path),
            mode="offline" if offline else "online",
            resume="allow",
            config=dict(session.recipe),
            # It would print in place of the run's own console.
            settings=swanlab.Settings(terminal={"proxy_type": "none"}),
        )
        sink = _Run(swanlab, run)
        if offline:
            self.refill(sink, session.history)
        return sink


class _Run:
    def __init__(self, swanlab: Any, run: Any) -> None:
        self.id = str(run.id)
        self._swanlab, self._run = swanlab, run

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def table(self, step: int, table: Table) -> None:
        made = self._swanlab.echarts.Table()
        made.add(list(table.columns), [list(row) for row in table.rows])
        self._run.log({"trajectories": made}, step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.config.update({"summary": dict(summary)})
        self._run.finish(state="success" if summary is not None else "aborted")
