"""The gate before the engine: who passes, who waits, and what counts as idle."""

import asyncio

from rollout_workers.gate import Gate


def test_a_closed_gate_holds_new_requests_back_and_lets_those_inside_end():
    async def scenario():
        gate, order = Gate(), []
        leave = asyncio.Event()

        async def request(name, until):
            async with gate.passing():
                order.append(f"{name} in")
                await until.wait()
                order.append(f"{name} out")

        first = asyncio.create_task(request("first", leave))
        await asyncio.sleep(0)
        gate.close()
        second = asyncio.create_task(request("second", leave))
        await asyncio.sleep(0)
        assert (gate.inside, gate.is_open) == (1, False)
        leave.set()
        await gate.empty()
        order.append("empty")
        gate.open()
        await asyncio.gather(first, second)
        return order

    assert asyncio.run(scenario()) == ["first in", "first out", "empty", "second in", "second out"]


def test_a_request_that_fails_leaves_the_gate():
    async def scenario():
        gate = Gate()
        try:
            async with gate.passing():
                raise IndexError("a bug")
        except IndexError:
            pass
        async with asyncio.timeout(1):
            await gate.empty()
        return gate.inside

    assert asyncio.run(scenario()) == 0


def test_idle_is_the_time_without_a_request(monkeypatch):
    now = 100.0
    monkeypatch.setattr("rollout_workers.gate.time.monotonic", lambda: now)

    async def scenario():
        nonlocal now
        gate = Gate()
        now += 3
        seen = [gate.idle_seconds]
        async with gate.passing():
            now += 5
            seen.append(gate.idle_seconds)
        now += 2
        return [*seen, gate.idle_seconds]

    assert asyncio.run(scenario()) == [3.0, 3.0, 5.0]
