"""The limits of one tool, and what they count.

Queue, slots, rate, deadline, retries, circuit breaker, cache.
"""

import asyncio
import threading
import time

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from tool_server.arguments import define
from tool_server.config import Breaker, ToolServerConfig
from tool_server.runner import Circuit
from tool_server.server import ToolServer
from tool_server.stats import summarize
from tool_server.tool import ToolError, ToolStatus, ToolStopped, ToolUnavailable

OK, TOOL_ERROR, INFRASTRUCTURE = ToolStatus.OK, ToolStatus.TOOL_ERROR, ToolStatus.INFRASTRUCTURE


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


def server_with(own_kinds, run, *, pure=False, servers=1, **limits) -> ToolServer:
    @own_kinds.register("probe")
    def open_probe(name):
        return define(name, "a probe", Anything, run, pure=pure)

    recipe = {"tools": {"probe": limits}, "servers": servers}
    return ToolServer(ToolServerConfig.model_validate(recipe))


async def many(server: ToolServer, count: int, **arguments) -> list:
    return await asyncio.gather(*(server.call("probe", arguments, []) for _ in range(count)))


def test_concurrency_is_limited_and_waiting_does_not_count(own_kinds):
    running, most = 0, 0

    async def run(call):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.7)
        running -= 1
        return "done", ()

    async def six() -> list:
        server = server_with(own_kinds, run, concurrency=2, deadline_s=2)
        return await asyncio.gather(*(server.call("probe", {}, []) for _ in range(6)))

    results = asyncio.run(six())
    assert most == 2
    # The last one waited 1.4 s for its slot, and so took 2.1 s.
    assert [r.status for r in results] == [ToolStatus.OK] * 6
    assert all(r.seconds < 2 for r in results)


def test_deadline_frees_the_slot_of_a_function_that_hangs(own_kinds):
    release = threading.Event()
    calls = []

    def run(call):
        calls.append(threading.current_thread())
        if len(calls) == 1:
            release.wait(10)
        return "done", ()

    async def two() -> list:
        server = server_with(own_kinds, run, concurrency=1, deadline_s=0.2)
        results = [await server.call("probe", {}, []), await server.call("probe", {}, [])]
        release.set()
        await asyncio.to_thread(calls[0].join)
        return results

    started = time.monotonic()
    first, second = asyncio.run(two())
    assert (first.status, first.text) == (ToolStatus.DEADLINE, "probe ran longer than 0.2 s")
    assert second.status == ToolStatus.OK
    assert time.monotonic() - started < 5


def test_plain_functions_do_not_block_the_loop(own_kinds):
    together = threading.Barrier(4)

    def run(call):
        together.wait(10)  # one after the other, the first would wait in vain
        return threading.current_thread().name, ()

    async def four() -> list:
        server = server_with(own_kinds, run)
        return await asyncio.gather(*(server.call("probe", {}, []) for _ in range(4)))

    assert all(r.text == "tool-probe" for r in asyncio.run(four()))


def test_a_broken_tool_is_infrastructure(own_kinds):
    def run(call):
        raise RuntimeError("no disk")

    result = asyncio.run(server_with(own_kinds, run).call("probe", {}, []))
    assert (result.status, result.text) == (INFRASTRUCTURE, "probe failed: RuntimeError: no disk")


@pytest.mark.parametrize(
    "returned",
    [
        None,
        "a text alone",
        ("a", "b"),
        (b"bytes", ()),
        ("a", [np.zeros((4, 4, 3))]),  # floats
        ("a", [np.zeros((4, 4), np.uint8)]),
        ("a", [np.zeros((0, 4, 3), np.uint8)]),
        ("a", [None]),
        ("a", (), "b"),
    ],
)
def test_what_is_no_text_with_images_is_the_tools_fault(own_kinds, returned):
    server = server_with(own_kinds, lambda call: returned, retries=0)
    result = asyncio.run(server.call("probe", {}, []))
    assert result.status is INFRASTRUCTURE
    assert "TypeError" in result.text
    assert result.images == ()


def test_infrastructure_is_tried_again_and_the_policys_faults_are_not(own_kinds):
    calls = []

    def run(call):
        calls.append(call.arguments.what)
        if call.arguments.what == "flaky" and calls.count("flaky") < 3:
            raise ToolUnavailable("hiccup")
        if call.arguments.what == "wrong":
            raise ToolError("not like this")
        return "done", ()

    async def both() -> list:
        server = server_with(own_kinds, run, retries=2)
        return [await server.call("probe", {"what": what}, []) for what in ("flaky", "wrong")]

    flaky, wrong = asyncio.run(both())
    assert (flaky.status, flaky.text, calls.count("flaky")) == (OK, "done", 3)
    assert (wrong.status, wrong.text, calls.count("wrong")) == (TOOL_ERROR, "not like this", 1)


def test_a_full_queue_refuses_and_nothing_is_lost(own_kinds):
    async def run(call):
        await asyncio.sleep(0.1)
        return "done", ()

    async def ten() -> tuple[list, dict]:
        server = server_with(own_kinds, run, concurrency=2, queue=3)
        return await many(server, 10), await server.take_stats()

    results, stats = asyncio.run(ten())
    assert [r.status for r in results] == [OK] * 5 + [ToolStatus.OVERLOADED] * 5
    numbers = summarize([stats])["probe"]
    assert (numbers["calls"], numbers["ok"], numbers["overloaded"]) == (5, 5, 5)
    assert numbers["wait_p99_s"] >= 0.09  # the fifth waited for two rounds


def test_the_circuit_opens_answers_at_once_and_closes_again(own_kinds):
    broken, ran = True, 0

    async def run(call):
        nonlocal ran
        ran += 1
        if broken:
            raise ConnectionError("refused")
        return "done", ()

    async def story() -> list:
        nonlocal broken
        server = server_with(own_kinds, run, retries=0, breaker={"failures": 3, "seconds": 1})
        failed = [await server.call("probe", {}, []) for _ in range(5)]
        broken = False
        await asyncio.sleep(1.1)
        return [*failed, await server.call("probe", {}, []), await server.call("probe", {}, [])]

    results = asyncio.run(story())
    assert [r.status for r in results] == [INFRASTRUCTURE] * 5 + [OK] * 2
    assert all("3 calls failed in a row" in r.text for r in results[3:5])
    assert ran == 3 + 2


def test_a_circuit_lets_one_call_try():
    now = 0.0
    circuit = Circuit(Breaker(failures=2, seconds=10), lambda: now)
    for _ in range(2):
        assert circuit.admit()
        circuit.record(failed=True)
    assert not circuit.admit()
    now = 10.0
    assert [circuit.admit(), circuit.admit()] == [True, False]
    circuit.record(failed=True)
    now = 19.0
    assert not circuit.admit()
    now = 20.0
    assert circuit.admit()
    circuit.record(failed=False)
    assert [circuit.admit(), circuit.admit()] == [True, True]


def test_rate_is_shared_by_the_servers_and_waiting_does_not_count(own_kinds):
    starts = []

    async def run(call):
        starts.append(time.monotonic())
        return "done", ()

    async def four() -> list:
        return await many(server_with(own_kinds, run, servers=2, rate_per_s=20, deadline_s=0.25), 4)

    assert [r.status for r in asyncio.run(four())] == [OK] * 4
    assert starts[-1] - starts[0] >= 0.29  # 20 a second over two servers: one each 0.1 s


def test_equal_calls_of_a_pure_tool_are_answered_from_the_cache(own_kinds):
    ran = []
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)

    def run(call):
        ran.append(call.arguments.model_dump())
        return f"{call.images[0].mean():g}", (call.images[0],)

    async def five() -> tuple[list, dict]:
        # 2,097 bytes: some of these results
        server = server_with(own_kinds, run, pure=True, cache_mb=0.002)
        calls = [
            ({"a": 1, "b": 2}, black),
            ({"b": 2, "a": 1}, black),
            ({"a": 1, "b": 2}, white),
            ({"a": 2, "b": 2}, black),
        ]
        results = [await server.call("probe", arguments, [image]) for arguments, image in calls]
        for number in range(20):
            await server.call("probe", {"a": 1, "number": number}, [black])
        results.append(await server.call("probe", {"a": 1, "b": 2}, [black]))
        return results, await server.take_stats()

    results, stats = asyncio.run(five())
    assert [r.text for r in results] == ["0", "0", "255", "0", "0"]
    assert np.array_equal(results[1].images[0], black)
    assert len(ran) == 3 + 20 + 1  # the second came from the cache; the last was pushed out of it
    assert summarize([stats])["probe"]["cached"] == 1


def test_only_a_pure_tool_can_be_cached(own_kinds):
    with pytest.raises(
        ToolUnavailable, match=r"tools\.tools\.probe: cache_mb=1, but probe is not a pure tool"
    ):
        asyncio.run(server_with(own_kinds, lambda call: ("", ()), cache_mb=1).schemas())


def test_results_are_capped_and_said_to_be(own_kinds):
    image = np.zeros((2, 2, 3), np.uint8)

    def run(call):
        if call.arguments.model_dump().get("fail"):
            raise ToolError("y" * 50)
        return "x" * 50, (image,) * 5

    async def both() -> list:
        server = server_with(own_kinds, run, max_characters=40, max_images=2)
        return [await server.call("probe", {"fail": fail}, []) for fail in (False, True)]

    good, bad = asyncio.run(both())
    assert len(good.images) == 2
    assert good.text.startswith("x" * 40 + "\n[")
    assert good.text.endswith("more characters cut]")
    assert bad.text == "y" * 40 + "\n[10 more characters cut]"


def test_images_of_a_result_are_scaled_to_what_the_model_sees(own_kinds):
    large, small = np.full((60, 90, 3), 7, np.uint8), np.full((20, 30, 3), 9, np.uint8)
    server = server_with(own_kinds, lambda call: ("", (large, small)), max_image_pixels=600)
    result = asyncio.run(server.call("probe", {}, []))
    assert [image.shape for image in result.images] == [(20, 30, 3), (20, 30, 3)]
    assert result.images[1] is small


def test_an_image_that_no_model_takes_is_the_policys_to_read(own_kinds):
    """It may have asked for a strip; an image in the prompt would end the engine's request."""
    strip = np.zeros((1, 201, 3), np.uint8)
    server = server_with(own_kinds, lambda call: ("", (strip,)))
    result = asyncio.run(server.call("probe", {}, []))
    assert (result.status, result.images) == (ToolStatus.TOOL_ERROR, ())
    assert result.text == (
        "the result is an image of 201x1 pixels, more than 200 times as long as wide"
    )


def test_functions_that_never_end_do_not_pile_up(own_kinds):
    release, ran = threading.Event(), []

    def run(call):
        ran.append(1)
        release.wait(20)
        return "", ()

    async def story() -> list:
        server = server_with(
            own_kinds, run, concurrency=1, deadline_s=0.5, breaker={"failures": 1000}
        )
        late = [await server.call("probe", {}, []) for _ in range(6)]
        release.set()
        await asyncio.sleep(0.2)
        return [*late, await server.call("probe", {}, [])]

    results = asyncio.run(story())
    assert [r.status for r in results] == [ToolStatus.DEADLINE] * 4 + [INFRASTRUCTURE] * 2 + [OK]
    assert results[4].text == "probe: 4 calls ran over and have not ended"
    assert len(ran) == 5


def test_numbers_of_several_servers_are_merged_and_taken_once(own_kinds):
    async def run(call):
        if call.arguments.model_dump().get("bad"):
            raise ToolError("bad")
        return "", ()

    async def story() -> tuple:
        server = server_with(own_kinds, run)
        await many(server, 3)
        await many(server, 1, bad=True)
        return await server.take_stats(), await server.take_stats()

    first, second = asyncio.run(story())
    numbers = summarize([first, first, second])["probe"]
    assert (numbers["calls"], numbers["ok"], numbers["tool_error"]) == (8, 6, 2)
    assert 0 <= numbers["p50_s"] <= numbers["p95_s"] <= numbers["p99_s"] < 1
    assert summarize([second]) == {}


def test_a_call_that_was_stopped_is_the_policys_and_left_nothing(own_kinds):
    """However many there are, the circuit stays closed for the others."""

    def run(call):
        assert call.deadline_s == 9
        if call.arguments.model_extra["burns"]:
            raise ToolStopped("[stopped after 1 s]")
        raise ToolError("1 / 0")

    async def calls() -> list:
        server = server_with(own_kinds, run, deadline_s=9, breaker={"failures": 2})
        return [
            *(await many(server, 5, burns=True)),
            *(await many(server, 1, burns=False)),
        ]

    *stopped, other = asyncio.run(calls())
    assert [(r.status, r.left_nothing) for r in stopped] == [(TOOL_ERROR, True)] * 5
    assert (other.status, other.text, other.left_nothing) == (TOOL_ERROR, "1 / 0", False)
