"""A resampler without Ray, with the methods of `ResamplerClient`."""

from __future__ import annotations

from resampler.config import ResamplerConfig
from resampler.history import History, Outcome
from resampler.resampler import Resampler
from resampler.schedules import Decision
from rollout_workers.trajectory import Group, SpecialTokens


class LocalResampler:
    """Answer as the client of an actor does, from this process."""

    def __init__(self, config: ResamplerConfig, tokens: SpecialTokens, n: int) -> None:
        self.resampler = Resampler(config, tokens, n)

    async def offer(
        self,
        group: Group | None,
        batch: int,
        place: int,
        questions: int,
        trained: int | None = None,
    ) -> Decision:
        return self.resampler.offer(group, batch, place, questions, trained)

    def learn(self, outcome: Outcome) -> None:
        self.resampler.learn(outcome)

    def history(self) -> History:
        return self.resampler.history()

    def restore(self, history: History) -> None:
        self.resampler.restore(history)
