"""The shell around the selection, with mock workers."""

import asyncio
from dataclasses import replace

import pytest
from ray.exceptions import ActorDiedError

from resampler.config import ResamplerConfig
from resampler.resampler import Resampler, ResampleStats, start_resampler
from rollout_workers.trajectory import EndReason, ForkPoint, Resample
from tests.resampler.helpers import TOKENS, calling, direct, group


class MockWorker:
    """Answers forks like a rollout worker; `behave` maps a question to what goes wrong."""

    def __init__(self, behave: dict[str, str] | None = None):
        self.behave, self.requests = behave or {}, []
        self.fork = self  # worker.fork.remote(...)

    async def remote(self, question, source, prefix_tokens, k, step):
        self.requests.append((question.id, source.rollout, prefix_tokens, k, step))
        trouble = self.behave.get(question.id)
        if trouble == "hangs":
            await asyncio.sleep(60)
        if trouble == "dies":
            raise ActorDiedError()
        if trouble == "bug":
            raise IndexError("a bug")
        forks = [replace(source, reward=float(i == 0), fork=ForkPoint(source.rollout, i, prefix_tokens)) for i in range(k)]
        if trouble == "one failed":
            forks[1] = replace(forks[1], reward=None, end=EndReason.ENGINE_FAILURE)
        if trouble == "short":
            forks.pop()
        return Resample(source.rollout, prefix_tokens, tuple(forks))


def run(workers, groups, *, n=8, step=5, **config):
    async def both():
        resampler = Resampler(ResamplerConfig(**config), TOKENS, workers, n)
        return await resampler.resample(groups, step), await resampler.stats()

    return asyncio.run(both())


def two_candidates(question: str, first: float, second: float, worker: int = 0):
    return group(
        question,
        direct(1, 0, question),
        calling(first, rollout=1, question=question),
        calling(second, rollout=2, question=question),
        worker=worker,
    )


def test_forks_go_to_the_worker_of_the_source():
    workers = [MockWorker(), MockWorker()]
    groups = [two_candidates("a", 0.5, 0.25, worker=1), group("b", direct(1)), two_candidates("c", 0.75, 0.9, worker=0)]
    # Budget: floor(0.25 * 3 * 8 / 2) * 2 = 6 rollouts, 3 prefixes: a's 0.25, c's 0.75, then a's 0.5.
    out, stats = run(workers, groups, k=2)
    assert workers[1].requests == [("a", 2, 3, 2, 5), ("a", 1, 3, 2, 5)]
    assert workers[0].requests == [("c", 1, 3, 2, 5)]
    assert [[r.source for r in g.resamples] for g in out] == [[1, 2], [], [1]]
    assert all(len(r.continuations) == 2 for g in out for r in g.resamples)
    assert [g.question.id for g in out] == ["a", "b", "c"]
    assert out[0].rollouts == groups[0].rollouts
    assert stats == ResampleStats(triggered=2, candidates=4, selected=3, dropped=0)


def test_budget_smaller_than_the_candidates():
    worker = MockWorker()
    out, stats = run([worker], [two_candidates("a", 0.5, 0.25), two_candidates("b", 0.1, 0.2)], k=4)  # floor(0.25 * 2 * 8 / 4) = 1 prefix
    assert worker.requests == [("b", 1, 3, 4, 5)]
    assert [len(g.resamples) for g in out] == [0, 1]
    assert stats == ResampleStats(triggered=2, candidates=4, selected=1, dropped=0)


@pytest.mark.parametrize("trouble", ["hangs", "dies", "one failed", "short"])
def test_what_infrastructure_broke_is_dropped_whole(trouble):
    out, stats = run([MockWorker({"a": trouble})], [two_candidates("a", 0.5, 0.25), two_candidates("b", 0.1, 0.2)], k=2, deadline_s=0.3)
    # floor(0.25 * 2 * 8 / 2) = 2 prefixes, one a question.
    assert [len(g.resamples) for g in out] == [0, 1]
    assert stats == ResampleStats(triggered=2, candidates=4, selected=2, dropped=1)


def test_a_bug_is_raised():
    with pytest.raises(IndexError, match="a bug"):
        run([MockWorker({"a": "bug"})], [two_candidates("a", 0.5, 0.25)], k=2)


def test_nothing_to_do():
    out, stats = run([MockWorker()], [group("a", direct(0)), group("b", direct(1))])
    assert [g.resamples for g in out] == [(), ()]
    assert stats == ResampleStats(0, 0, 0, 0)
    assert run([MockWorker()], [])[0] == []


@pytest.mark.engine
def test_as_an_actor_with_actor_workers():
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=1, include_dashboard=False)

    @ray.remote(num_cpus=0)
    class Worker:
        def fork(self, question, source, prefix_tokens, k, step):
            forks = [replace(source, reward=1.0, fork=ForkPoint(source.rollout, i, prefix_tokens)) for i in range(k)]
            return Resample(source.rollout, prefix_tokens, tuple(forks))

    try:
        alive, dead = Worker.remote(), Worker.remote()
        ray.kill(dead)
        resampler = start_resampler(ResamplerConfig(k=2, deadline_s=60), TOKENS, [alive, dead], 8)
        groups = [two_candidates("a", 0.5, 0.25), two_candidates("b", 0.1, 0.2, worker=1)]
        out = ray.get(resampler.resample.remote(groups, 0), timeout=90)
        assert [len(g.resamples) for g in out] == [1, 0]
        assert ray.get(resampler.stats.remote(), timeout=30) == ResampleStats(triggered=2, candidates=4, selected=2, dropped=1)
    finally:
        if ours:
            ray.shutdown()
