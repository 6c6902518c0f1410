"""Which worker gets a question or a fork, without Ray."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rollout_workers.fleet import Worker, WorkersFailed
from rollout_workers.routing import Router


def routed(scenario, workers=2, concurrency=4):
    """Runs `scenario(router, fleet)` over idle workers with so many slots each."""

    async def run():
        loop = asyncio.get_running_loop()
        serving = [Worker(i, i, None, loop.create_future()) for i in range(workers)]
        fleet = SimpleNamespace(serving=serving, failed=None)
        return await scenario(Router(fleet, concurrency), fleet)

    return asyncio.run(run())


def test_the_least_loaded_worker_gets_the_work_and_the_first_place_breaks_ties():
    async def scenario(router, fleet):
        return [(await router.least_loaded(work)).id for work in (2, 3, 2, 1)]

    assert routed(scenario) == [0, 1, 0, 1]  # loads 2 0, 2 3, 4 3, 4 4


def test_work_waits_in_its_order_when_every_worker_has_twice_its_slots():
    async def scenario(router, fleet):
        full = [await router.least_loaded(8) for _ in range(2)]
        waiting = [asyncio.create_task(router.least_loaded(work)) for work in (5, 1)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        router.done(full[1], 8)
        return [(await task).id for task in waiting], [worker.load for worker in fleet.serving]

    assert routed(scenario) == ([1, 1], [8, 6])


def test_who_gives_up_waiting_holds_nobody_up():
    async def scenario(router, fleet):
        (worker,) = fleet.serving
        await router.least_loaded(8)
        gone, waiting = (asyncio.create_task(router.least_loaded(1)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        router.done(worker, 8)
        return (await waiting).load

    assert routed(scenario, workers=1) == 1


def test_who_gives_up_as_a_worker_is_found_leaves_no_load():
    async def scenario(router, fleet):
        (worker,) = fleet.serving
        await router.least_loaded(8)
        waiting = asyncio.create_task(router.least_loaded(1))
        await asyncio.sleep(0)
        router.done(worker, 8)  # the place is given, and nobody has run yet
        assert worker.load == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return worker.load

    assert routed(scenario, workers=1) == 0


def test_a_fork_goes_home_while_home_has_slots_or_is_not_far_above_the_mean():
    async def scenario(router, fleet):
        home, other = fleet.serving
        taken = [router.home(home.id, 2) is home for _ in range(3)]
        assert router.home(other.id, 4) is router.home(other.id, 2) is other
        return [*taken, router.home(home.id, 2) is home, home.load]

    # Loads 2 and 4 are within the slots. 6 is more than 1.25 * mean 2 + 2; with 6 on the other
    # worker the mean is 5, and 6 is less than 1.25 * 5 + 2.
    assert routed(scenario) == [True, True, False, True, 6]


def test_a_lost_worker_gets_nothing():
    async def scenario(router, fleet):
        fleet.serving[0].lose("died")
        assert router.home(0, 1) is None
        return (await router.least_loaded(1)).id

    assert routed(scenario) == 1


def test_who_waits_hears_that_the_fleet_has_failed():
    async def scenario(router, fleet):
        await router.least_loaded(8)
        waiting = asyncio.create_task(router.least_loaded(1))
        await asyncio.sleep(0)
        fleet.failed = WorkersFailed("too many")
        fleet.on_change()
        with pytest.raises(WorkersFailed, match="too many"):
            await waiting
        with pytest.raises(WorkersFailed, match="too many"):
            await router.least_loaded(1)

    routed(scenario, workers=1)


def test_each_choice_is_what_the_loads_say():
    """Random work on a fleet that loses workers and gets others, against the plain definition."""
    rng = np.random.default_rng(0)

    async def scenario(router, fleet):
        loop, running, homes = asyncio.get_running_loop(), [], 0
        for step in range(3_000):
            alive = [worker for worker in fleet.serving if not worker.lost.done()]
            loads = [worker.load for worker in alive]
            work = int(rng.integers(1, 5))
            if step % 100 == 50:
                rng.choice(alive).lose("died")
            elif step % 100 == 55:  # later, as in a fleet
                gone = next(worker for worker in fleet.serving if worker.lost.done())
                new = Worker(1_000 + step, gone.place, None, loop.create_future())
                fleet.serving = [w for w in fleet.serving if w is not gone] + [new]
                fleet.on_change()
            elif running and rng.uniform() < 0.5:
                worker, its_work = running.pop(int(rng.integers(len(running))))
                router.done(worker, its_work)
            elif rng.uniform() < 0.5:
                home = rng.choice(alive)
                # With the load of one that is lost and not retired yet.
                mean = sum(w.load for w in fleet.serving) / len(fleet.serving)
                fits = home.load + work <= max(8, 1.25 * mean + work)
                assert router.home(home.id, work) is (home if fits else None)
                homes += fits
                running += [(home, work)] * fits
            elif min(loads) < 16:
                expected = min(alive, key=lambda w: (w.load, w.place))
                assert await router.least_loaded(work) is expected
                running.append((expected, work))
        return homes

    assert routed(scenario, workers=7, concurrency=8) > 100


def test_placing_work_costs_the_same_for_a_thousand_workers():
    async def scenario(router, fleet):
        begun = time.process_time()
        for _ in range(2_000):
            worker = await router.least_loaded(2)
            assert router.home(worker.id, 2) is worker
            router.done(worker, 4)
        return time.process_time() - begun

    few, many = (min(routed(scenario, workers=workers) for _ in range(3)) for workers in (4, 1_000))
    # Going through all workers was 30 times as much here.
    assert many < 6 * few
