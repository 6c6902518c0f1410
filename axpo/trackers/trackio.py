"""Trackio: a local database, a Hugging Face Space, or a server of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from axpo.trackers.tracker import Numbers, Session, Sink, Table, Tracker, trackers


@trackers.register("trackio")
class Trackio(Tracker):
    """Trackio: TRACKIO_DIR on this machine (`trackio show`), or a Space or server."""

    package: ClassVar[str] = "trackio"

    project: str = "axpo"
    group: str | None = None
    space: str | None = Field(None, description="owner/name of a Hugging Face Space")
    server: str | None = Field(None, description="URL of a Trackio server")

    def open(self, session: Session) -> Sink:
        """Begin the run, or go on with it. A local one is written anew: nothing can be taken back.

        A Space or a server keeps the steps that it has, beside those that ran again.
        """
        import trackio

        local = self.space is None and self.server is None
        if local and session.id is not None:
            for run in trackio.Api().runs(self.project):
                if run.name == session.id:
                    run.delete()
        run = trackio.init(
            project=self.project,
            name=session.id or session.name,
            group=self.group,
            config=dict(session.recipe),
            space_id=self.space,
            server_url=self.server,
            resume="never" if local else "allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        sink = _Run(trackio, run)
        if local:
            self.refill(sink, session.history)
        return sink


class _Run:
    def __init__(self, trackio: Any, run: Any) -> None:
        self.id = str(run.name)
        self._trackio, self._run = trackio, run
        self._step = 0

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)
        self._step = step

    def table(self, step: int, table: Table) -> None:
        rows = [list(row) for row in table.rows]
        made = self._trackio.Table(
            columns=list(table.columns), data=rows, allow_mixed_types=True, optional=True
        )
        self._run.log({"trajectories": made}, step=step)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            numbers = {f"summary/{name}": value for name, value in summary.items()}
            self._run.log(numbers, step=self._step)
        self._run.finish()
