"""The multi-turn loop against a mock engine and a mock tool server."""

import asyncio

import numpy as np
import pytest

from rollout_workers import pictures
from rollout_workers.agent import Limits, Rollout, Scene
from rollout_workers.interfaces import ContextFull, EngineFailure, Generation
from rollout_workers.pictures import Pictures
from rollout_workers.pictures import picture as shown
from rollout_workers.segments import distinct_calls
from rollout_workers.trajectory import (
    EndReason,
    ObservationSegment,
    Question,
    UnusableQuestion,
)
from tests.rollout_workers.helpers import ZOOM, MockEngine, MockTools, Result, picture, zoomed

CALL = f"look\n</think>\n{ZOOM}"
BAD_BLOCK = "<tool_call>zoom!</tool_call>"
BAD = f"look\n</think>\n{BAD_BLOCK}"
ANSWER = "clear\n</think>\n7"


def play(chat, replies, answer=zoomed, **limits):
    """Plays one rollout; returns (response, engine, tools)."""
    engine, tools = MockEngine(chat, lambda i: replies[i]), MockTools(answer)
    defaults = {"max_turns": 3, "max_turn_tokens": 64, "max_calls_per_turn": 1, "deadline_s": 20.0}
    scene = Scene(
        chat=chat,
        generate=engine.generate,
        call_tool=tools.call,
        limits=Limits(**defaults | limits),
        question=Question("q", "?", ("the question's image",), "7"),
        prompt_ids=chat.prompt("?", (0,), [], None),
        pictures=Pictures([shown(picture(0))]),
        temperature=0.7,
    )
    rollout = Rollout(scene, seed)
    return asyncio.run(rollout.play()), engine, tools


def seed(turn, part):
    return 100 + turn + 1000 * part


def observation(chat, response, index=0):
    observations = [s for s in response.segments if isinstance(s, ObservationSegment)]
    return chat.decode(observations[index].token_ids)


def test_call_observe_answer(chat):
    response, engine, tools = play(chat, [CALL, CALL, ANSWER])
    assert (response.end, response.answer) == (EndReason.ANSWERED, "7")
    assert tools.calls == [("zoom", {"box": [1, 2]}, 1), ("zoom", {"box": [1, 2]}, 2)]
    assert [(r["images"], r["seed"], r["temperature"]) for r in engine.requests] == [
        (1, 100, 0.7),
        (2, 101, 0.7),
        (3, 102, 0.7),
    ]
    stats = response.stats
    assert (stats.tool_calls, stats.tool_failures, stats.cached_tokens) == (2, 0, 3)
    assert stats.tools == ("zoom", "zoom")
    assert stats.prompt_tokens == len(engine.requests[0]["ids"])


def test_every_request_extends_the_one_before_token_by_token(chat):
    response, engine, _ = play(chat, [CALL, CALL, ANSWER])
    whole = np.concatenate([engine.requests[0]["ids"], *[s.token_ids for s in response.segments]])
    for request in engine.requests:
        assert np.array_equal(request["ids"], whole[: len(request["ids"])])
    assert np.array_equal(engine.requests[2]["ids"], whole[: -len(response.segments[-1].token_ids)])


def test_each_segment_carries_the_version_it_was_sampled_under(chat):
    engine = MockEngine(chat, lambda i: [CALL, ANSWER][i])

    def update(name, arguments):
        engine.version = 4
        return zoomed(name, arguments)

    scene = Scene(
        chat=chat,
        generate=engine.generate,
        call_tool=MockTools(update).call,
        limits=Limits(3, 64, 1, 20.0),
        question=Question("q", "?", (), "7"),
        prompt_ids=chat.prompt("?", (), [], None),
        pictures=Pictures([]),
        temperature=1.0,
    )
    response = asyncio.run(Rollout(scene, seed).play())
    sampled = [s for s in response.segments if not isinstance(s, ObservationSegment)]
    assert [segment.policy_version for segment in sampled] == [0, 4]


def test_no_answer_without_closing_the_thinking(chat):
    response, _, _ = play(chat, ["7"])
    assert (response.end, response.answer) == (EndReason.ANSWERED, None)


def test_a_malformed_call_is_answered_and_the_rollout_goes_on(chat):
    response, _, tools = play(chat, [BAD, ANSWER])
    assert (response.end, tools.calls) == (EndReason.ANSWERED, [])
    assert "<tool_response>\nmalformed call: not valid JSON" in observation(chat, response)
    assert (response.stats.tool_calls, response.stats.tool_failures) == (1, 1)


def test_calls_over_the_limit_are_answered_and_not_run(chat):
    response, _, tools = play(chat, [f"</think>{BAD_BLOCK}{ZOOM}{ZOOM}", ANSWER])
    assert len(tools.calls) == 1
    text = observation(chat, response)
    assert text.count("<tool_response>") == 3
    said = ["malformed call", "zoomed.", "not run: at most 1 tool call a turn"]
    places = [text.index(part) for part in said]
    assert places == sorted(places)
    assert (response.stats.tool_calls, response.stats.tool_failures) == (3, 2)


def test_a_tool_learns_the_calls_before_it(chat):
    second = ZOOM.replace("[1, 2]", "[3]")
    _, _, tools = play(
        chat,
        [f"</think>{BAD_BLOCK}{ZOOM}{second}{ZOOM}", CALL, ANSWER],
        lambda *_: Result("tool_error", "no"),
        max_calls_per_turn=2,
    )
    first_two = [("zoom", {"box": [1, 2]}, 1), ("zoom", {"box": [3]}, 1)]
    # Blocks that were no call, or over the limit, were not run. The calls of one turn are told of
    # each other as if they had run in order.
    assert tools.earlier == [[], first_two[:1], first_two]


def test_a_tool_does_not_hear_again_of_a_call_that_left_nothing(chat):
    calls = [CALL, CALL.replace("[1, 2]", "[3]"), CALL]
    answers = iter([Result("ok", ""), Result("tool_error", "stopped", left_nothing=True)])
    _, _, tools = play(
        chat, [*calls, ANSWER], lambda *_: next(answers, Result("ok", "")), max_turns=4
    )
    assert [arguments["box"] for _, arguments, _ in tools.calls] == [[1, 2], [3], [1, 2]]
    first = ("zoom", {"box": [1, 2]}, 1)
    assert tools.earlier == [[], [first], [first]]


def test_a_tool_error_is_the_policys_to_read(chat):
    response, _, _ = play(chat, [CALL, ANSWER], lambda *_: Result("tool_error", "bbox_2d is empty"))
    assert "bbox_2d is empty" in observation(chat, response)
    assert (response.end, response.stats.tool_failures) == (EndReason.ANSWERED, 1)


def test_a_name_that_the_policy_made_up_is_no_tool_that_ran(chat):
    response, _, tools = play(
        chat, [CALL.replace("zoom", "wythong"), CALL, ANSWER], lambda *_: Result("tool_error", "no")
    )
    assert [call[0] for call in tools.calls] == ["wythong", "zoom"]
    stats = response.stats
    assert (stats.tool_calls, stats.tool_failures, stats.tools) == (2, 2, ("zoom",))


def test_ends(chat):
    assert play(chat, [CALL, CALL, CALL])[0].end == EndReason.OUT_OF_TURNS
    assert play(chat, [CALL, CALL, BAD])[0].end == EndReason.MALFORMED_CALL
    assert play(chat, ["look and look…"])[0].end == EndReason.OUT_OF_TOKENS
    # Even if the prompt of the second turn fills the context: the policy's call did that.
    assert play(chat, [CALL, ContextFull("4097 tokens")])[0].end == EndReason.OUT_OF_TOKENS
    assert play(chat, [EngineFailure("dead")])[0].end == EndReason.ENGINE_FAILURE
    assert play(chat, [CALL, 30.0], deadline_s=0.2)[0].end == EndReason.DEADLINE


def test_a_question_that_fills_the_context_alone_is_not_the_policys_fault(chat):
    with pytest.raises(UnusableQuestion, match="question q: 4097 tokens"):
        play(chat, [ContextFull("4097 tokens")])


def test_a_tools_text_is_cut_by_tokens_and_says_so(chat):
    text = "the digit in the red frame is seven. " * 40
    tokens = len(chat.plain.encode(text, add_special_tokens=False).ids)
    whole, _, _ = play(chat, [CALL, ANSWER], lambda *_: Result("ok", text), max_tool_tokens=tokens)
    assert text in observation(chat, whole)
    response, _, _ = play(chat, [CALL, ANSWER], lambda *_: Result("ok", text), max_tool_tokens=50)
    shown = observation(chat, response).split("<tool_response>\n")[1].split("\n</tool_resp")[0]
    kept, _, said = shown.rpartition("\n")
    assert said == f"[{tokens - 50} more tokens cut]"
    assert text.startswith(kept)
    assert len(chat.plain.encode(kept, add_special_tokens=False).ids) == 50


def test_an_image_is_copied_and_hashed_once_however_many_turns_show_it(chat, monkeypatch):
    made = []
    monkeypatch.setattr(pictures, "picture", lambda pixels: made.append(pixels) or shown(pixels))
    response, engine, _ = play(chat, [CALL, CALL, CALL, ANSWER], max_turns=4)
    assert [request["images"] for request in engine.requests] == [1, 2, 3, 4]
    assert [id(pixels) for pixels in made] == [id(s.images[0]) for s in response.segments[1::2]]


def test_stats_have_the_prompts_of_the_first_and_the_last_request(chat):
    response, engine, _ = play(chat, [CALL, CALL, ANSWER])
    lengths = [len(request["ids"]) for request in engine.requests]
    stats = response.stats
    assert (stats.prompt_tokens, stats.last_prompt_tokens) == (lengths[0], lengths[2])
    assert stats.later_prompt_tokens == lengths[1] + lengths[2]


def test_a_tool_server_that_fails_is_infrastructure(chat):
    def dies(name, arguments):
        raise ConnectionError("actor died")

    for answer in (
        dies,
        lambda *_: Result("infrastructure", "disk full"),
        lambda *_: Result("deadline", "too slow"),
    ):
        response, _, _ = play(chat, [CALL, ANSWER], answer)
        assert response.end == EndReason.TOOL_ERROR
        assert response.end.infrastructure
        assert len(response.segments) == 1


def test_what_was_sampled_before_an_end_is_kept(chat):
    response, _, _ = play(chat, [CALL, EngineFailure("dead")])
    assert [isinstance(s, ObservationSegment) for s in response.segments] == [False, True]


def test_distinct_calls_end_at_the_closing_tag_and_one_cut_short_differs_from_all(chat):
    def generation(text, cut=False):
        ids = chat.encode_policy(text)
        return Generation(ids, np.zeros(len(ids), np.float32), None, not cut, 1, 0, 0, cut)

    one, other = '{"a": 1}</tool_call>', '{"a": 2}</tool_call>'
    assert distinct_calls([generation(one), generation(one + "\nmore")], chat.tokens) == 1
    assert distinct_calls([generation(one), generation(other), generation(one)], chat.tokens) == 2
    never_closed = [generation('{"a"'), generation('{"a"')]
    assert distinct_calls(never_closed, chat.tokens) == 1
    cut = [generation('{"a"', cut=True), generation('{"a"', cut=True)]
    assert distinct_calls(cut, chat.tokens) == 2
