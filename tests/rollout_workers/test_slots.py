"""Concurrency that follows the engine, on a clock of the test's own."""

import asyncio

from rollout_workers.slots import EngineLoad, Slots


def run(scenario):
    return asyncio.run(scenario)


class Clock:
    now = 0.0

    def __call__(self):
        self.now += 1.0  # every look is a second after the last
        return self.now


def test_no_more_than_the_limit_and_urgent_ones_first():
    async def scenario():
        slots, order = Slots(1, 4, EngineLoad), []

        async def work(name, count=1, urgent=False):
            async with slots.hold(count, urgent=urgent):
                order.append((name, slots.in_use))
                await asyncio.sleep(0.01)

        await asyncio.gather(
            work("a", 4), work("b"), work("c"), work("fork", 4, urgent=True), work("d", 9)
        )
        return slots, order

    slots, order = run(scenario())
    # b and c run side by side; d asks for more than there is: it runs alone.
    assert order == [("a", 4), ("fork", 4), ("b", 2), ("c", 2), ("d", 9)]
    assert (slots.in_use, slots.queued) == (0, 0)


def test_the_limit_falls_while_requests_wait_and_rises_again():
    load = EngineLoad(waiting=3)

    async def scenario():
        slots = Slots(6, 10, lambda: load, Clock())

        async def rollouts(count):
            async def one():
                async with slots.hold():
                    await asyncio.sleep(0)

            await asyncio.gather(*[one() for _ in range(count)])

        await rollouts(20)
        low = slots.limit
        nonlocal load
        load = EngineLoad()
        await rollouts(20)
        return low, slots.limit

    assert run(scenario()) == (6, 10)


def test_a_full_cache_counts_as_waiting():
    async def scenario():
        slots = Slots(1, 10, lambda: EngineLoad(kv_use=0.97), Clock())
        async with slots.hold():
            pass
        return slots.limit

    assert run(scenario()) == 9


def test_one_that_gives_up_waiting_leaves_no_trace():
    async def scenario():
        slots = Slots(1, 1, EngineLoad)
        async with slots.hold():
            waiting = asyncio.create_task(slots.hold().__aenter__())
            await asyncio.sleep(0)
            assert slots.queued == 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert slots.queued == 0
        async with asyncio.timeout(1), slots.hold():
            return slots.in_use

    assert run(scenario()) == 1
