"""The engines as the learner calls them: rollout workers, all of them at once.

Receivers are rollout workers (Ray actor handles) with `init_weight_transfer(info)`,
`start_weight_update()`, `update_weights(payload)`, `finish_weight_update(version) -> version` and
`differing_weights(payload) -> list[str]`.
Nothing heavy is imported here: the driver calls them too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

SETTLE_S = 10.0
"""Seconds that receivers get to end a call after another one's has failed."""


class Receivers:
    """Treat the engines as one: each call goes to all of them.

    All calls together wait no longer than the deadline, then they raise
    ray.exceptions.GetTimeoutError. The first four methods are vLLM's `VLLMWeightSyncClient`
    protocol.
    """

    def __init__(self, handles: Sequence[Any], ranks_each: int = 1) -> None:
        """Take rollout workers.

        Args:
            handles: Ray handles of the workers.
            ranks_each: processes of one engine, which is its tensor parallel size.
        """
        self.handles = list(handles)
        self.version = 0
        self._ranks_each = ranks_each
        self._until = 0.0

    @property
    def ranks(self) -> int:
        """Processes of all engines."""
        return len(self.handles) * self._ranks_each

    def within(self, seconds: float) -> None:
        """Let the calls from now on end within so many seconds, all together."""
        self._until = time.monotonic() + seconds

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the engines.

        vLLM numbers one engine's processes from `rank_offset`. Each receiver is an engine of its
        own, so each gets its own offset.
        """
        calls = []
        for i, handle in enumerate(self.handles):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += i * self._ranks_each
            calls.append(handle.init_weight_transfer.remote(info))
        self.wait(calls)

    def hold(self) -> None:
        """Return when no engine has a request in flight; they hold new ones back."""
        self.wait(self.call("start_weight_update"))

    def start_weight_update(self) -> None:
        """Do nothing: the driver has called `hold` before the ranks send."""

    def update_weights(self, update_info: Any) -> None:
        """Hand one payload to the engines."""
        self.wait(self.call("update_weights", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Tell the engines that they have all weights.

        Raises:
            RuntimeError: an engine does not confirm the version.
        """
        confirmed = self.wait(self.call("finish_weight_update", self.version))
        wrong = [version for version in confirmed if version != self.version]
        if wrong:
            raise RuntimeError(
                f"after weight update {self.version} {len(wrong)} engines "
                f"confirm version {wrong[0]}"
            )

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Start a method on all receivers and return the references to its results."""
        return [getattr(handle, method).remote(*arguments) for handle in self.handles]

    def wait(self, references: list[Any]) -> list[Any]:
        """Return the results; raise what the first failed call raised."""
        # Here, so that ranks alone need no Ray.
        import ray

        try:
            return ray.get(references, timeout=max(self._until - time.monotonic(), 0))
        except BaseException:
            # The others may still read the bucket: an engine must not fail because another did.
            ray.wait(references, num_returns=len(references), timeout=SETTLE_S)
            raise
