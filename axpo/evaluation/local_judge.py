"""A judge of one's own: a local model, served by vLLM while the answers are judged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
from pydantic import Field

from axpo.config import looks_local
from axpo.errors import AxpoError
from axpo.tasks.judge import PROMPT_HASH, Judge, Judgement, judges
from axpo.tasks.judge_endpoint import Endpoint

_SERVER = "vllm.entrypoints.openai.api_server"
_SERVED = "axpo.evaluation.served"
_STOP_S = 30.0


@judges.register("local")
class Local(Judge):
    """A model folder, served by vLLM on this machine once the engines are gone."""

    model: str = Field(description="folder, or name on the hub")
    args: tuple[str, ...] = Field((), description="of vLLM's server, like --max-model-len=8192")
    start_s: float = Field(900.0, gt=0, description="seconds until it must serve")
    concurrency: int = Field(32, ge=1, description="requests at once")
    max_tokens: int = Field(512, ge=1, description="of a reply; models that think need them")
    cache: str | None = Field(None, description="folder of the verdicts; None: they are not kept")

    def describe(self) -> str:
        """Return the model and the prompt's hash."""
        return f"{self.model} (local), prompt {PROMPT_HASH}"

    def check_settings(self) -> None:
        """Raise AxpoError if the model is a folder that is not there."""
        if looks_local(self.model) and not (Path(self.model) / "config.json").is_file():
            raise AxpoError(f"judge: {self.model}: no model folder there")

    def check(self, timeout_s: float | None = None) -> None:
        """Raise AxpoError if the model is a folder that is not there; it is not started."""
        self.check_settings()

    def judge(self, question: str, accepted: Sequence[str], answer: str) -> Judgement:
        """Raise: the judge that `opened` gives answers."""
        raise RuntimeError("a local judge must be opened first")

    @contextmanager
    def opened(self) -> Iterator[Judge]:
        """Serve the model, and give the endpoint that asks it.

        Raises:
            AxpoError: the server does not start.
        """
        port = _free_port()
        command = [sys.executable, "-m", _SERVED, str(os.getpid()), _SERVER]
        command += ["--model", self.model, "--port", str(port)]
        command += ["--host", "127.0.0.1", "--served-model-name", "judge", *self.args]
        with tempfile.TemporaryFile() as log:
            # A session of its own, so that its engine processes end with it.
            server = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                _await(server, f"http://127.0.0.1:{port}/health", self.start_s)
                yield Endpoint(
                    base_url=f"http://127.0.0.1:{port}/v1",
                    model="judge",
                    concurrency=self.concurrency,
                    max_tokens=self.max_tokens,
                    cache=self._cache(),
                )
            except _NotServing as error:
                raise AxpoError(f"judge: {self.model}: {error}{_last_line(log)}") from None
            finally:
                _end(server)

    def _cache(self) -> str | None:
        if self.cache is None:
            return None
        # The endpoint calls every model "judge", and two folders may have one name.
        digest = hashlib.sha256(self.model.encode()).hexdigest()[:8]
        return str(Path(self.cache) / f"{Path(self.model).name}-{digest}")


class _NotServing(Exception):
    """The server ended, or did not serve in time."""


def _await(server: subprocess.Popen[bytes], address: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise _NotServing(f"its server ended with status {server.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address, timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise _NotServing(f"its server does not serve after {seconds:g} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_S)
            return


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
