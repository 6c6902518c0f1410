"""Start vLLM's engine process as a fork of a process that has imported vLLM already.

vLLM starts it anew: it allows no fork in a Ray actor, which has threads. So the engine's process
would begin to import vLLM only when the worker has imported it: 6 to 10 s one after the other,
while other cores idle. A fork server (`multiprocessing.forkserver` of Python) has no threads and
no Ray. It imports vLLM while the worker does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

MODULES = "rollout_workers.engine_modules"
"""What the fork server imports."""


class _Process(ForkServerProcess):
    """A process with the environment of who starts it: the fork server's is older."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = dict(os.environ)

    def run(self) -> None:
        """Run the target; called in the new process."""
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Process


def prepare() -> None:
    """Let the fork server of this process begin to import vLLM, with the environment of now.

    It ends when this process does.
    """
    forkserver.set_forkserver_preload([MODULES])
    forkserver.ensure_running()


@contextmanager
def forked() -> Iterator[None]:
    """Let engines that a block starts be forks of the fork server."""
    from vllm.v1.engine import utils

    # vLLM knows fork and spawn only, and would change "fork" into "spawn" in a Ray actor.
    chosen = utils.get_mp_context
    utils.get_mp_context = _Context
    try:
        yield
    finally:
        utils.get_mp_context = chosen
