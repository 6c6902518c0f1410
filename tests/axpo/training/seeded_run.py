"""Run `axpo` with an engine that answers by seed and weights; kill it at a chosen moment.

    python -m tests.axpo.training.seeded_run MOMENT axpo-arguments...

MOMENT is `never`, or `method:call:seconds`: for example `update:2:0.1` is 0.1 s after the learner's
second update began. Everything but the engine is real: agent loop, tools, resampler, ZeRO-3, weight
transfer, checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

import axpo.session
import axpo.training.trainer
from axpo import cli
from learner.learner import Learner
from rollout_workers.chat import Chat
from rollout_workers.image_rule import image_rule
from rollout_workers.interfaces import Generation, Sampling
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.slots import EngineLoad
from rollout_workers.worker import RolloutWorker


class SeededEngine:
    """Each reply is a function of the request's seed and of the weights it was last sent."""

    def __init__(self, settings: WorkerSettings, tokens: Any) -> None:
        self.chat, self.rule = Chat.load(settings.model), image_rule(settings.model)
        self.weights, self.version = hashlib.sha256(), 0

    async def generate(self, prompt_ids: Any, images: Any, sampling: Sampling) -> list[Generation]:
        opened = self.chat.decode(prompt_ids).endswith("<tool_call>")
        weights = self.weights.hexdigest()
        generations = []
        for k in range(sampling.n):
            rng = random.Random(f"{sampling.seed + k}/{weights}")
            ids = self.chat.encode_policy(self._reply(rng, opened, len(images)))
            logprobs = -np.array([rng.random() for _ in ids], np.float32)
            tokens = [self.rule.tokens(*picture.image.size) for picture in images]
            prompt = len(prompt_ids) - len(tokens) + sum(tokens)
            generations.append(Generation(ids, logprobs, None, True, prompt, 0, self.version))
        return generations

    def _reply(self, rng: random.Random, opened: bool, images: int) -> str:
        """Return a call if one was opened, or in half of the first turns; else an answer."""
        thought = "It is small.\n</think>\n\n"
        if opened or (images == 1 and rng.random() < 0.5):
            x, y = rng.randrange(0, 800, 50), rng.randrange(0, 800, 50)
            arguments = {"bbox_2d": [x, y, x + 200, y + 200]}
            call = json.dumps({"name": "image_zoom_in", "arguments": arguments})
            start = "" if opened else f"{thought}<tool_call>"
            return f"{start}\n{call}\n</tool_call><|im_end|>"
        return f"{thought}The answer is \\boxed{{{rng.randrange(10)}}}.<|im_end|>"

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        pass

    async def start_weight_update(self) -> None:
        self.weights = hashlib.sha256()

    async def update_weights(self, payload: dict[str, Any]) -> None:
        self.weights.update(Path(payload["file"]).read_bytes())

    async def finish_weight_update(self, version: int) -> int:
        self.version = version
        return version

    async def alive(self) -> None:
        pass

    def load(self) -> EngineLoad:
        return EngineLoad()

    def stats(self) -> dict[str, float]:
        return {"generated_tokens": 0, "prompt_tokens": 0, "cached_tokens": 0, "idle_seconds": 0.0}

    def shutdown(self) -> None:
        pass


class SeededWorker(RolloutWorker):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, engine_factory=SeededEngine)


def kill_at(owner: Any, name: str, call: int, seconds: float) -> None:
    """Send SIGKILL to this process, `seconds` after a call of `owner.name` began.

    Args:
        owner: module or class of the function.
        name: of the function.
        call: which of its calls, counted from 1.
        seconds: from its beginning.
    """
    real, calls = getattr(owner, name), iter(range(1, 1000))

    @functools.wraps(real)
    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == call:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return real(*arguments, **keywords)

    setattr(owner, name, counted)


if __name__ == "__main__":
    seeded = functools.partial(RolloutPool, actor_class=SeededWorker)
    axpo.session.RolloutPool = seeded  # type: ignore[misc, assignment]
    moment = sys.argv.pop(1)
    if moment != "never":
        method, call, seconds = moment.split(":")
        owner = axpo.training.trainer if method == "held_out" else Learner
        kill_at(owner, method, int(call), float(seconds))
    cli.main()
