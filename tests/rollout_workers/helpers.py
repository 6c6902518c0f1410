"""Mocks of the engine and the tool server, and small builders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rollout_workers.chat import Chat
from rollout_workers.interfaces import Generation
from rollout_workers.slots import EngineLoad
from rollout_workers.trajectory import Pixels, Question

ZOOM = '<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2]}}\n</tool_call>'
Reply = str | Exception | float


@dataclass(frozen=True)
class Result:
    """What a tool answers."""

    status: str
    text: str
    images: tuple[Pixels, ...] = ()
    tool: str = ""
    left_nothing: bool = False
    seconds: float = 0.0


class MockEngine:
    """Answers the i-th request with `script(i)`.

    A reply is a closed turn's text, an exception to raise, or seconds to hang. A text that ends in
    "…" is cut by the length limit. Log-probabilities are -0.5 everywhere; 3 tokens of a prompt
    are cached.
    """

    def __init__(self, chat: Chat, script: Callable[[int], Reply]) -> None:
        self.chat = chat
        self.script = script
        self.requests = []
        self.version = 0

    async def generate(self, prompt_ids, images, sampling):
        reply = self.script(len(self.requests))
        self.requests.append(
            {
                "ids": prompt_ids,
                "images": len(images),
                "seed": sampling.seed,
                "n": sampling.n,
                "temperature": sampling.temperature,
            }
        )
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, float):
            await asyncio.sleep(reply)
            raise AssertionError("slept through its deadline")
        await asyncio.sleep(0)
        ids = self.chat.encode_policy(reply if reply.endswith("…") else reply + "<|im_end|>")
        generation = Generation(
            token_ids=ids,
            logprobs=np.full(len(ids), -0.5, np.float32),
            entropies=None,
            finished=not reply.endswith("…"),
            prompt_tokens=len(prompt_ids),
            cached_tokens=3,
            policy_version=self.version,
        )
        return [generation] * sampling.n

    async def finish_weight_update(self, version):
        self.version = version
        return version

    async def alive(self):
        pass

    def load(self):
        return EngineLoad()

    def stats(self):
        return {"running": 0}

    def shutdown(self):
        pass


class MockTools:
    """The tools of a run: `answer(name, arguments)` gives the result or raises."""

    def __init__(
        self, answer: Callable[[str, dict], Result], names: tuple[str, ...] = ("zoom",)
    ) -> None:
        self.answer = answer
        self.names = names
        self.calls = []  # (name, arguments, number of images)
        self.earlier = []  # of each call, the calls that it was told of

    async def schemas(self):
        return [
            {"type": "function", "function": {"name": name, "parameters": {}}}
            for name in self.names
        ]

    def evaluating(self):
        return MockTools(
            lambda name, arguments: Result("ok", "only in evaluations"), (*self.names, "search")
        )

    async def call(self, name, arguments, images, earlier):
        self.calls.append((name, arguments, len(images)))
        self.earlier.append(list(earlier))
        return replace(self.answer(name, arguments), tool=name if name in self.names else "")


def zoomed(name: str, arguments: dict) -> Result:
    return Result("ok", "zoomed.", (picture(1),))


def picture(seed: int, side: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def question(images: int = 1) -> Question:
    return Question(
        "q1", "what is the digit in the red frame?", tuple(picture(i) for i in range(images)), "7"
    )
