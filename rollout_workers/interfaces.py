"""What a rollout worker needs of others, as protocols: an engine, tools and a verifier.

The agent loop and the worker see these only, so tests run them with mocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rollout_workers.chat import Observed
from rollout_workers.pictures import Picture
from rollout_workers.slots import EngineLoad
from rollout_workers.trajectory import Floats, Ids, Question

Verify: TypeAlias = Callable[[Question, str | None], float]
"""Gives the reward of an answer (None: there is none), a finite number. It runs in a thread of
its own."""

Called: TypeAlias = tuple[str, dict[str, Any], int]
"""A tool call: name and arguments as the policy wrote them, and how many images there were."""


class EngineFailure(Exception):
    """The engine could not serve a request. This counts as infrastructure."""


class ContextFull(Exception):
    """Prompt and response, with images expanded, leave no room for another token."""


@dataclass(frozen=True)
class Sampling:
    """How one request is sampled."""

    seed: int  # of the first continuation; the k-th has seed + k
    max_tokens: int
    n: int = 1  # continuations
    temperature: float = 1.0


@dataclass(frozen=True)
class Generation:
    """One sampled continuation."""

    token_ids: Ids  # [T], a closing <|im_end|> included
    logprobs: Floats  # [T], of the distribution sampled from: temperature and bans included
    entropies: Floats | None  # [T] nats
    finished: bool  # closed by <|im_end|>; otherwise a length limit or a weight update cut it
    prompt_tokens: int  # images expanded
    cached_tokens: int  # of these, served from the prefix cache
    policy_version: int
    cut: bool = False  # by a weight update: the next policy goes on with the turn


class Generate(Protocol):
    """Sampling, as an engine does it."""

    async def __call__(
        self, prompt_ids: Ids, images: Sequence[Picture], sampling: Sampling
    ) -> list[Generation]:
        """Sample `sampling.n` continuations of a prompt.

        Raises:
            EngineFailure: if the engine could not serve the request.
            ContextFull: if the prompt leaves no room for a token.
        """


class Engine(Protocol):
    """An engine that serves the policy; see `rollout_workers.engine.VLLMEngine`."""

    @property
    def generate(self) -> Generate: ...

    async def init_weight_transfer(self, info: dict[str, Any]) -> None: ...
    async def start_weight_update(self) -> None: ...
    async def update_weights(self, payload: dict[str, Any]) -> None: ...
    async def finish_weight_update(self, version: int) -> int: ...
    async def differing_weights(self, payload: dict[str, Any]) -> list[str]: ...
    async def alive(self) -> None: ...
    async def sleep(self) -> None: ...
    async def wake(self, tag: str) -> None: ...
    def load(self) -> EngineLoad: ...
    def stats(self) -> dict[str, float]: ...
    def shutdown(self) -> None: ...


class ToolAnswer(Observed, Protocol):
    """The typed result of a tool server."""

    @property
    def status(self) -> str:
        """How the call ended.

        `ok`, `tool_error` (the policy's fault), `unavailable` (nobody's fault: the rollout goes
        on), `infrastructure` or `deadline`.
        """

    @property
    def tool(self) -> str:
        """The tool that the call reached, empty if none: never a name that the policy made up."""

    @property
    def seconds(self) -> float:
        """Seconds that the call ran, without the wait for a free slot."""

    @property
    def left_nothing(self) -> bool:
        """Whether later calls need not be told of this one."""


class CallTool(Protocol):
    """A tool call, as the tools of a run answer it."""

    async def __call__(
        self, name: str, arguments: dict[str, Any], images: Sequence[Any], earlier: Sequence[Called]
    ) -> ToolAnswer:
        """Run a tool. An exception counts as an infrastructure failure.

        Args:
            name: the tool, as the policy wrote it.
            arguments: as the policy wrote them.
            images: all images seen so far, the question's first.
            earlier: the rollout's calls before this one, in order, without those that are known to
                have left nothing behind.
        """


class Tools(Protocol):
    """The tools of a run: an object that can be sent to a worker."""

    @property
    def call(self) -> CallTool: ...

    async def schemas(self) -> list[dict[str, Any]]: ...

    def evaluating(self) -> Tools:
        """Return these tools and those that only evaluations offer.

        Only the rollouts of an evaluation ask for them.
        """
        ...
