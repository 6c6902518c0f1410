"""What counts as the time of a rollout, by a tool that waits or runs for real."""

import asyncio
import time
from dataclasses import replace

import pytest

from rollout_workers.agent import Limits, Rollout, Scene
from rollout_workers.chat import Chat
from rollout_workers.deadline import Deadline
from rollout_workers.pictures import Pictures, picture
from rollout_workers.trajectory import EndReason, Question
from tests.rollout_workers import helpers
from tests.rollout_workers.helpers import ZOOM, MockEngine, Result

CALL = f"look\n</think>\n{ZOOM}"
ANSWER = "clear\n</think>\n7"


def play(model, replies, tool, deadline_s, calls=1):
    """Play one rollout; `tool` is a coroutine function of no arguments that gives a Result."""
    chat = Chat.load(model)

    async def call(name, arguments, images, earlier):
        return replace(await tool(), tool=name)

    scene = Scene(
        chat=chat,
        generate=MockEngine(chat, lambda i: replies[i]).generate,
        call_tool=call,
        limits=Limits(6, 256, calls, deadline_s),
        question=Question("q", "?", ("the question's image",), "7"),
        prompt_ids=chat.prompt("?", (0,), [], None),
        pictures=Pictures([picture(helpers.picture(0))]),
        temperature=0.7,
    )
    return asyncio.run(Rollout(scene, lambda turn, part: turn).play())


def tool_that(waits, runs=0.0):
    async def tool():
        await asyncio.sleep(waits + runs)
        return Result("ok", "done", seconds=runs)

    return tool


def test_a_wait_for_a_slot_is_no_part_of_a_rollouts_time(model):
    # 2.1 s of waiting in all, of 4.5 s; sampling has 1.5 s of its own.
    response = play(model, [CALL] * 3 + [ANSWER], tool_that(waits=0.7), deadline_s=1.5)
    assert (response.end, response.answer) == (EndReason.ANSWERED, "7")


def test_sleepers_do_not_end_the_rollouts_that_wait_behind_them(model):
    """Eight rollouts share one slot, and each holds it for 0.3 s: the last one waits for 2.1 s."""
    slot = None

    async def tool():
        async with slot:
            await asyncio.sleep(0.3)
        return Result("ok", "slept", tool="zoom", seconds=0.3)

    async def group():
        nonlocal slot
        slot = asyncio.Semaphore(1)

        async def one():
            async with Deadline(1.5) as deadline:
                await asyncio.sleep(0.3)  # it samples
                ran: list[float] = []
                with deadline.calling(ran):
                    ran.append((await tool()).seconds)
                await asyncio.sleep(0.3)
            return deadline.calls_used_up

        return await asyncio.gather(*[one() for _ in range(8)])

    assert asyncio.run(group()) == [False] * 8


def test_a_policy_that_makes_its_calls_sleep_has_used_up_its_turns(model):
    replies = [CALL] * 5 + [ANSWER]
    response = play(model, replies, tool_that(waits=0, runs=0.5), deadline_s=0.9)
    assert response.end is EndReason.OUT_OF_TURNS
    assert not response.end.infrastructure
    assert response.stats.tool_calls == 2


def test_calls_side_by_side_do_not_take_more_than_the_time_that_passed(model):
    two = f"{CALL}\n{ZOOM}"
    response = play(model, [two, ANSWER], tool_that(waits=0, runs=0.6), deadline_s=1.0, calls=2)
    assert response.end is EndReason.ANSWERED


def test_a_tool_that_never_answers_is_given_up_and_is_nobodys_fault(model):
    started = time.monotonic()
    response = play(model, [CALL, ANSWER], tool_that(waits=60), deadline_s=0.2)
    assert response.end is EndReason.DEADLINE
    assert time.monotonic() - started < 30


def test_sampling_has_no_more_time_for_a_call_that_was_quick():
    async def block():
        async with Deadline(0.5) as deadline:
            with deadline.calling(ran := []):
                ran.append(0.0)
            await asyncio.sleep(20)

    with pytest.raises(TimeoutError):
        asyncio.run(block())
