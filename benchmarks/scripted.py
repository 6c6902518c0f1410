"""An engine and a tool under control: lengths, turns and latencies follow from seeds.

Every request samples as many tokens as its seed says, and turns call a tool or answer as scripted.

What is measured is ours and vLLM's: prompts, images, scheduling, sampling, the agent loop, Ray.
What the tiny policy would say is not: its turns get an ending written by `Script`, as if sampled,
so that lengths and turns are the same in everything compared.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout_workers.chat import Chat
from rollout_workers.engine import VLLMEngine
from rollout_workers.interfaces import Generation, Sampling
from rollout_workers.pictures import Picture
from rollout_workers.settings import WorkerSettings
from rollout_workers.special_tokens import SpecialTokens
from rollout_workers.trajectory import Ids, Question

if TYPE_CHECKING:
    from vllm import SamplingParams

# Draws of one seed that must not depend on each other.
CALL_DRAW, LATENCY_DRAW, ANSWER_DRAW = 1, 2, 3
FILLER = 20
"""A token of ordinary text."""


def log_normal(draw: Sequence[int] | int, mean: float, sigma: float) -> float:
    """Return a draw from a log-normal distribution with this mean."""
    mu = math.log(mean) - sigma**2 / 2
    return float(np.random.default_rng(draw).lognormal(mu, sigma))


def right(question: Question, answer: str | None) -> float:
    """Verify an answer of `Script`."""
    return float(answer is not None and "right" in answer)


@dataclass(frozen=True)
class Script:
    """What a turn does: a function of its request's seed.

    Its length in tokens is thoughts, log-normal, and then the call if there is one.
    """

    mean: float = 64.0
    sigma: float = 0.0
    most: int = 384
    tool_turns: int = 0
    """Turns of every rollout that call the tool."""
    tool_rate: float = 1.0
    """Share of the rollouts that call it at all."""
    call: int = 32
    """Tokens of a call. A turn that a continuation begins behind the opening tag has no others."""
    right: float = 0.5
    """Share of right answers."""

    def tokens(self, seed: int, turn: int = 0, *, opened: bool = False) -> int:
        """Return the length of a turn; `opened`: it begins inside a call."""
        if opened:
            return self.call
        thoughts = int(np.clip(log_normal(seed, self.mean, self.sigma), 4, self.most))
        return thoughts + (self.call if self.calls(seed, turn) else 0)

    def calls(self, seed: int, turn: int) -> bool:
        """Return whether a turn ends with a call."""
        if turn >= self.tool_turns:
            return False
        return turn > 0 or _uniform(seed, CALL_DRAW) < self.tool_rate

    def ending(self, seed: int, turn: int, *, opened: bool) -> str:
        """Return what a turn ends with: a call, or an answer."""
        call = f'{{"name": "wait", "arguments": {{"seed": {seed % 2**31}}}}}\n</tool_call>'
        if opened:
            return f"{call}<|im_end|>"
        if self.calls(seed, turn):
            return f"\n</think>\n\n<tool_call>\n{call}<|im_end|>"
        answer = "right" if _uniform(seed, ANSWER_DRAW) < self.right else "wrong"
        return f"\n</think>\n\n\\boxed{{{answer}}}<|im_end|>"


def _uniform(seed: int, draw: int) -> float:
    return float(np.random.default_rng([seed, draw]).uniform())


class ScriptedEngine(VLLMEngine):
    """vLLM with forced lengths. `script` may be changed between measurements."""

    def __init__(self, settings: WorkerSettings, tokens: SpecialTokens) -> None:
        super().__init__(settings, tokens)
        self.chat, self.script = Chat.load(settings.model), Script()

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        params = super()._sampling_params(sampling)
        # The script alone says how long a turn is.
        params.stop_token_ids = []
        return params

    async def generate(
        self, prompt_ids: Ids, images: Sequence[Picture], sampling: Sampling
    ) -> list[Generation]:
        """Sample what the script says, and write its ending."""
        tokens = self.chat.tokens
        opened = bool(prompt_ids[-1] == tokens.call_open)
        # A prompt opens system (the tools), user and assistant; each tool result opens the last two
        # again.
        turn = (int((prompt_ids == tokens.im_start).sum()) - 3) // 2
        seed = sampling.seed
        most = min(sampling.max_tokens, self.script.tokens(seed, turn, opened=opened))
        shorter = replace(sampling, max_tokens=most)
        generations = await super().generate(prompt_ids, images, shorter)
        ended = []
        for k, generation in enumerate(generations):
            ending = self.script.ending(seed + k, turn, opened=opened)
            ended.append(self._ended(generation, ending))
        return ended

    def _ended(self, generation: Generation, ending: str) -> Generation:
        special = self.chat.encode_policy("</think><tool_call></tool_call><|im_end|>")
        # What the tiny policy sampled by chance must not end thoughts, calls or turns.
        sampled = np.where(np.isin(generation.token_ids, special), FILLER, generation.token_ids)
        ids = np.concatenate([sampled, self.chat.encode_policy(ending)]).astype(np.int32)
        added = np.full(len(ids) - len(sampled), -0.5)
        logprobs = np.concatenate([generation.logprobs, added]).astype(np.float32)
        return replace(generation, token_ids=ids, logprobs=logprobs, finished=True)


@dataclass(frozen=True)
class Waited:
    """The answer of the tool."""

    status: str = "ok"
    text: str = "done."
    images: tuple[Any, ...] = ()
    tool: str = "wait"
    left_nothing: bool = False
    seconds: float = 0.0


class WaitingTools:
    """A tool whose latency is log-normal, drawn from the seed in its arguments.

    The mean can be set in the worker's process.
    """

    mean_s = 0.0
    sigma = 1.0

    async def schemas(self) -> list[dict[str, Any]]:
        """Return the one tool."""
        return [{"type": "function", "function": {"name": "wait", "parameters": {}}}]

    def evaluating(self) -> WaitingTools:
        """Return the tools of evaluations: the same."""
        return self

    async def call(
        self,
        name: str,
        arguments: dict[str, Any],
        images: Sequence[Any],
        earlier: Sequence[Any] = (),
    ) -> Waited:
        """Wait."""
        seconds = self.seconds(arguments["seed"])
        await asyncio.sleep(seconds)
        return Waited(seconds=seconds)

    def seconds(self, seed: int) -> float:
        """Return the latency of a call."""
        return log_normal([seed, LATENCY_DRAW], self.mean_s, self.sigma) if self.mean_s else 0.0
