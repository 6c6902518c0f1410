"""Tell of lost workers at once, and stop a run that loses them for one and the same reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rollout_workers.causes import same_cause
from rollout_workers.fleet import Log


class Losses:
    """Stand before the log of a run's workers and questions, and say what a person must know.

    Before the first step is done, a second loss by the same cause ends the run: what breaks every
    engine (no shared memory, no room on the GPU, another network) would otherwise be tried again
    until `rollout.max_failures`.
    """

    def __init__(self, log: Log, say: Callable[[str], None], first: int, run: Path) -> None:
        """Take the place of a log.

        Args:
            log: what all events go on to.
            say: prints one line.
            first: steps that are behind the run when it starts.
            run: the run directory.
        """
        self.nodes: Mapping[str, str] = {}
        """Where each actor stands, by its name."""
        self.stop: Callable[[str], None] | None = None
        """Gives all workers up, with the reason."""
        self._log_on, self._say, self._first, self._run = log, say, first, run
        self._before_first_step: set[str] | None = set()

    def log(self, event: str, **fields: Any) -> None:
        """Take an event, and pass it on."""
        self._log_on(event, **fields)
        if event == "worker lost":
            self._lost(fields)
        elif event == "worker serves" and fields["worker"] != fields["place"]:
            # The first workers have the numbers of their places; others replace one.
            self._say(f"engine {fields['place']}{self._on(fields)} serves again")
        elif event in ("trained", "dropped") and fields.get("step", -1) > self._first:
            # A batch of the second step: weights have been sent, and the first step is done.
            self._before_first_step = None

    def _lost(self, fields: Mapping[str, Any]) -> None:
        why = str(fields["why"])
        self._say(
            f"engine {fields['place']}{self._on(fields)} was lost: {why} "
            f"(loss {fields['failures']}; what it printed: {self._run}/logs)"
        )
        causes = self._before_first_step
        if causes is None or self.stop is None:
            return
        cause = same_cause(why)
        if cause in causes:
            self.stop(f"two engines were lost by the same cause before the first step: {why}")
        causes.add(cause)

    def _on(self, fields: Mapping[str, Any]) -> str:
        node = self.nodes.get(f"engine {fields['place']}")
        return f" on {node}" if node else ""
