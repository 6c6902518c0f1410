"""TensorBoard: event files in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from axpo.trackers.tracker import Numbers, Session, Sink, Table, Tracker, folder, trackers


@trackers.register("tensorboard")
class TensorBoard(Tracker):
    """TensorBoard event files in RUN/tensorboard: `tensorboard --logdir runs`."""

    package: ClassVar[str] = "tensorboard"

    def open(self, session: Session) -> Sink:
        """Begin an event file. After a resume its first event takes back all others."""
        # torch is slow to import, and most runs do without TensorBoard.
        from torch.utils.tensorboard import SummaryWriter

        path = str(folder(session, "tensorboard"))
        writer = SummaryWriter(path, purge_step=0 if session.id else None)
        writer.add_text("recipe", _code(session.recipe), 0)
        sink = _Events(writer)
        self.refill(sink, session.history)
        return sink


class _Events:
    id = "tensorboard"

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._step = 0

    def log(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._step = step

    def table(self, step: int, table: Table) -> None:
        """TensorBoard has no tables."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._writer.add_text("summary", _code(summary), self._step)
        self._writer.close()


def _code(values: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(values, indent=1)}\n```"
