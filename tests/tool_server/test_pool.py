"""Real Ray actors: routing, servers that die or freeze in a call, backpressure, start and end."""

import asyncio
import os
import pickle
import signal
import time
from collections import Counter

import numpy as np
import psutil
import pytest
import ray

from tests.tool_server.test_server import HERE, IMAGE, config
from tool_server import pool as pool_module
from tool_server.pool import ToolPool, start_tool_servers
from tool_server.tool import ToolStatus, ToolUnavailable

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if ours:
        ray.shutdown()


@pytest.fixture
def start():
    pools = []

    def starter(*functions, **settings) -> ToolPool:
        pools.append(start_tool_servers(config(*functions, cpus_per_server=0.01, **settings)))
        pools[-1].ready()
        return pools[-1]

    yield starter
    for pool in pools:
        pool.shutdown()


def test_references_and_pixels_reach_the_tool(start):
    pool = start(tools={"image_zoom_in": {}})
    reference = ray.put(IMAGE)

    async def three() -> list:
        box = {"bbox_2d": [0, 0, 500, 1000]}
        return [
            await pool.call("image_zoom_in", box | {"img_idx": i}, [reference, IMAGE])
            for i in (0, 1, 2)
        ]

    first, second, third = asyncio.run(three())
    assert np.array_equal(first.images[0], IMAGE[:, :32])
    assert np.array_equal(second.images[0], IMAGE[:, :32])
    assert third.status == ToolStatus.TOOL_ERROR


def test_calls_are_spread_and_counted_over_the_servers(start):
    pool = start("whose", servers=2)

    async def twenty() -> list:
        client = pickle.loads(pickle.dumps(pool))
        assert [s["function"]["name"] for s in await client.schemas()] == ["whose"]
        return await asyncio.gather(*(client.call("whose", {}, []) for _ in range(20)))

    assert sorted(Counter(r.text for r in asyncio.run(twenty())).values()) == [10, 10]
    numbers = pool.take_stats()["whose"]
    assert (numbers["calls"], numbers["ok"]) == (20, 20)
    assert pool.take_stats() == {}


def test_what_the_policy_got_wrong_is_answered_by_the_pool_too(start):
    pool = start("echo")

    async def two() -> list:
        return [
            await pool.call("python", {}, []),
            await pool.call("echo", {"text": "x" * 10**8}, []),
        ]

    unknown, huge = asyncio.run(two())
    assert unknown.status == ToolStatus.TOOL_ERROR
    assert unknown.text == "unknown tool 'python', known: echo"
    assert huge.text.startswith("arguments are too large")


def test_a_tool_of_evaluations_alone_is_neither_offered_nor_answered_elsewhere():
    pool = start_tool_servers(config("echo", "whose", cpus_per_server=0.01), ["whose"])

    async def asked(client) -> tuple[list, object]:
        offered = [schema["function"]["name"] for schema in await client.schemas()]
        return offered, await client.call("whose", {}, [])

    try:
        pool.ready()
        training = pickle.loads(pickle.dumps(pool))
        offered, refused = asyncio.run(asked(training))
        assert offered == ["echo"]
        assert refused.status == ToolStatus.TOOL_ERROR
        assert refused.text == "unknown tool 'whose', known: echo"
        assert pool.take_stats() == {}
        offered, answered = asyncio.run(asked(training.evaluating()))
        assert offered == ["echo", "whose"]
        assert (answered.status, answered.tool) == (ToolStatus.OK, "whose")
        assert pool.take_stats()["whose"]["calls"] == 1
    finally:
        pool.shutdown()


@pytest.mark.parametrize("servers", [1, 2])
def test_a_server_killed_in_the_middle_of_calls_loses_none(start, servers):
    """Every call is answered once.

    The slow ones that were running on the dead server are run again.
    """
    pool = start(
        "wait",
        "whose",
        servers=servers,
        tools={"wait": {"function": f"{HERE}:wait", "concurrency": 40}},
    )

    async def story() -> list:
        victim = int((await pool.call("whose", {}, [])).text)
        calls = [asyncio.create_task(pool.call("wait", {"seconds": 1.0}, [])) for _ in range(40)]
        await asyncio.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        return await asyncio.wait_for(asyncio.gather(*calls), 120)

    results = asyncio.run(story())
    assert [r.status for r in results] == [ToolStatus.OK] * 40
    assert {r.text for r in results} == {"waited"}


def test_code_that_ran_on_a_killed_server_is_run_again_and_its_jails_are_gone_at_once(
    start,
):
    pool = start("whose", tools={"python": {"options": {"memory_mib": 1024, "slots": 12}}})
    code = "import time\ntime.sleep(1)\nprint({n})"

    async def story() -> tuple[list, float]:
        server = psutil.Process(int((await pool.call("whose", {}, [])).text))
        calls = [
            asyncio.create_task(pool.call("python", {"code": code.format(n=n)}, []))
            for n in range(12)
        ]
        await asyncio.sleep(0.5)
        jails = server.children(recursive=True)
        python = [p for p in jails if "zygote" in " ".join(p.cmdline()) and p.name() != "bwrap"]
        assert len(python) > 2  # the two zygotes, and calls
        server.kill()
        killed = time.monotonic()
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in jails):
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - killed
        return await asyncio.wait_for(asyncio.gather(*calls), 120), seconds

    results, seconds = asyncio.run(story())
    assert [(r.status, r.text) for r in results] == [(ToolStatus.OK, str(n)) for n in range(12)]
    assert seconds < 10  # 1 s on a machine that does nothing else


def test_what_must_not_run_twice_is_typed(start, tmp_path):
    pool = start(tools={"die": {"function": f"{HERE}:die", "retries": 0}})

    async def twice() -> list:
        return [
            await pool.call("die", {"directory": str(tmp_path), "times": 1}, []) for _ in range(2)
        ]

    first, second = asyncio.run(twice())
    assert first.status == ToolStatus.INFRASTRUCTURE
    assert first.text.startswith("a tool server was lost in the middle of a call")
    # The pool waited for the restart.
    assert (second.status, second.text) == (ToolStatus.OK, "survived")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_call_that_kills_every_server_is_typed_and_the_servers_go_on(start, tmp_path):
    pool = start("die", "whose", servers=2)

    async def story() -> list:
        deadly = await pool.call("die", {"directory": str(tmp_path), "times": 9}, [])
        return [deadly, await pool.call("whose", {}, [])]

    deadly, other = asyncio.run(story())
    assert (deadly.status, other.status) == (ToolStatus.INFRASTRUCTURE, ToolStatus.OK)
    assert len(list(tmp_path.iterdir())) == 2  # once, and the one retry


def test_a_frozen_server_is_given_up(start, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "PING_S", 2.0)
    pool = start("freeze")
    result = asyncio.run(pool.call("freeze", {"directory": str(tmp_path)}, []))
    assert (result.status, result.text) == (ToolStatus.OK, "thawed")


def test_a_full_server_is_asked_again(start):
    pool = start(
        tools={"wait": {"function": f"{HERE}:wait", "concurrency": 2, "queue": 1, "deadline_s": 1}}
    )

    async def twelve() -> list:
        return await asyncio.gather(*(pool.call("wait", {"seconds": 0.2}, []) for _ in range(12)))

    # The last ones waited 1 s and more outside the queue.
    assert [r.status for r in asyncio.run(twelve())] == [ToolStatus.OK] * 12
    numbers = pool.take_stats()["wait"]
    assert numbers["ok"] == 12
    assert numbers["overloaded"] > 0


def test_a_cancelled_call_frees_its_slot(start):
    pool = start(tools={"wait": {"function": f"{HERE}:wait", "concurrency": 1, "deadline_s": 60}})

    async def story():
        await pool.schemas()
        slow = asyncio.create_task(pool.call("wait", {"seconds": 50}, []))
        await asyncio.sleep(1)
        slow.cancel()
        return await asyncio.wait_for(pool.call("wait", {"seconds": 0}, []), 20)

    assert asyncio.run(story()).status == ToolStatus.OK


def test_a_tool_that_cannot_start_ends_the_start():
    pool = start_tool_servers(
        config("echo", mcp=[{"command": ["/nowhere/mcp-server"]}], cpus_per_server=0.01)
    )
    try:
        with pytest.raises(ToolUnavailable) as error:
            pool.ready()
    finally:
        pool.shutdown()
    assert str(error.value).startswith(
        "tools.mcp (/nowhere/mcp-server): no MCP server: FileNotFoundError"
    )
    assert "\n" not in str(error.value)


def test_when_all_servers_have_ended_calls_are_typed(start):
    pool = start("echo")
    for server in pool.servers:
        ray.kill(server)
    started = time.monotonic()
    result = asyncio.run(pool.call("echo", {}, []))
    assert result.status == ToolStatus.INFRASTRUCTURE
    assert time.monotonic() - started < 30
