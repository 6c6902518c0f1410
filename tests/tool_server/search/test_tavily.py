"""The Tavily back end against a local server that speaks its protocol, errors included."""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tenacity import wait_fixed

from tests.tool_server.search.tavily_service import KEY, LOOP, Clock, Provider, answer, ask, client
from tool_server.search import tavily as tavily_module
from tool_server.search.options import MAX_RETRY_AFTER_S, LocalOptions, TavilyOptions
from tool_server.search.results import Result
from tool_server.search.tavily import _retry_after
from tool_server.search.tools import Search
from tool_server.tool import ToolError, ToolUnavailable


@pytest.fixture
def provider(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("TAVILY_API_KEY", KEY)
    monkeypatch.setattr(tavily_module, "BACKOFF", wait_fixed(0.01))
    provider = Provider()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


def test_the_request_and_the_answer(provider, tmp_path):
    tavily = client(
        provider,
        tmp_path,
        search_depth="advanced",
        topic="news",
        include_domains=["a.example"],
        exclude_domains=["b.example"],
    )
    (results,) = ask(tavily, "tallest tower", k=2)
    assert results == [
        Result("a", "https://a.example", "about a", 0.5),
        Result("b", "https://b.example", "about b", 0.5),
    ]
    ((path, headers, body),) = provider.requests
    assert path == "/search"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "query": "tallest tower",
        "max_results": 2,
        "search_depth": "advanced",
        "topic": "news",
        "include_domains": ["a.example"],
        "exclude_domains": ["b.example"],
    }


@pytest.mark.parametrize("key", [None, "", "  ", "tvly-\n1", "tvly-é"])
def test_without_a_key_it_does_not_open(provider, tmp_path, monkeypatch, key):
    if key is None:
        monkeypatch.delenv("TAVILY_API_KEY")
    else:
        monkeypatch.setenv("TAVILY_API_KEY", key)
    with pytest.raises(ToolUnavailable, match="TAVILY_API_KEY"):
        client(provider, tmp_path)
    assert provider.requests == []


def test_equal_queries_in_flight_make_one_request(provider, tmp_path):
    provider.script((200, {}, answer("a"), 0.3))
    answers = ask(client(provider, tmp_path), *["Tokyo  Tower"] * 10, *["tokyo tower"] * 10)
    assert answers == [answers[0]] * 20
    assert len(provider.requests) == 1


def test_the_day_s_first_answer_is_kept_on_disk(provider, tmp_path, monkeypatch):
    provider.script(
        (200, {}, answer("a")),
        (200, {}, answer("b")),
        (200, {}, answer("c")),
        (200, {}, answer("d")),
    )
    assert ask(client(provider, tmp_path), "Tokyo Tower")[0][0].title == "a"
    # Another server, another spelling.
    assert ask(client(provider, tmp_path), " tokyo\ttower ")[0][0].title == "a"
    assert len(provider.requests) == 1
    # Another number of results.
    assert ask(client(provider, tmp_path), "tokyo tower", k=4)[0][0].title == "b"
    # Another way to ask.
    assert ask(client(provider, tmp_path, topic="news"), "tokyo tower")[0][0].title == "c"
    monkeypatch.setattr(
        "tool_server.search.cache.datetime",
        type("D", (), {"now": lambda tz: datetime.now(tz) + timedelta(days=1)}),
    )
    # Another day.
    assert ask(client(provider, tmp_path), "tokyo tower")[0][0].title == "d"
    assert len(provider.requests) == 4
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and KEY in p.read_text()]


def test_of_two_servers_that_ask_at_once_the_first_answer_counts(provider, tmp_path):
    provider.script((200, {}, answer("slow"), 0.4), (200, {}, answer("fast"), 0))
    first, second = client(provider, tmp_path), client(provider, tmp_path)

    async def both():
        slow = asyncio.create_task(first.search("q", 5))
        while not provider.requests:
            await asyncio.sleep(0.01)
        return await second.search("q", 5), await slow

    fast, slow = LOOP.run_until_complete(both())
    assert [fast[0].title, slow[0].title] == ["fast", "fast"]
    assert len(provider.requests) == 2


@pytest.mark.parametrize("damaged", ['[{"title": ', '[{"name": "a"}]', "[" * 100_000])
def test_a_damaged_cache_file_is_asked_again(provider, tmp_path, damaged):
    ask(client(provider, tmp_path), "q")
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(damaged)
    assert ask(client(provider, tmp_path), "q")[0][0].title == "a"
    assert ask(client(provider, tmp_path), "q")[0][0].title == "a"
    assert len(provider.requests) == 2
    assert len(list((tmp_path / "cache").rglob("*"))) == 2  # the day and the answer, no leftovers


def test_a_cache_that_cannot_be_written(provider, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolUnavailable, match=r"search cache .*file/deep: Not a directory"):
        client(provider, tmp_path, cache=str(tmp_path / "file" / "deep"))


def test_a_refused_query_is_the_policy_s_fault(provider, tmp_path):
    provider.script((400, {}, {"detail": {"error": "Query is too\nlong. " + "x" * 1000}}))
    tavily = client(provider, tmp_path)
    for _ in range(4):  # and never parks the provider
        (error,) = ask(tavily, "q")
        assert type(error) is ToolError
        assert str(error).startswith("the search service refused the query: Query is too long. xxx")
        assert len(str(error)) < 250
    assert len(provider.requests) == 4


@pytest.mark.parametrize("status", [403, 413, 414, 422, 431])
def test_a_query_that_a_firewall_refuses_parks_nobody(provider, tmp_path, status):
    """A policy chooses what it asks: `<script>` may be enough."""
    provider.script((status, {}, b"<html>blocked</html>"))
    tavily = client(provider, tmp_path)
    (error,) = ask(tavily, "<script>../../etc/passwd")
    assert type(error) is ToolError
    assert str(error) == "the search service refused the query: no reason given"
    provider.script((200, {}, answer("a")))
    assert ask(tavily, "innocent")[0][0].title == "a"


@pytest.mark.parametrize(
    "reply",
    [
        (429, {"Retry-After": "0"}),
        (429, {"Retry-After": "nonsense"}),
        (500,),
        (503, {}, b"<html>"),
        (200, {}, b"not JSON"),
        (200, {}, b"[1, 2]"),
        (200, {}, {"results": "none"}),
        (200, {}, {"answer": "no results key"}),
        (200, {}, b"\xff\xfe"),
        (200, {}, b"[" * 1_000_000),
        (200, {}, b"x" * 5_000_000),
        # The connection ends too early or hangs.
        (200, {"Content-Length": "99999"}, answer("cut"), 0),
    ],
)
def test_failures_are_retried_then_infrastructure(provider, tmp_path, reply):
    provider.script(reply, (200, {}, answer("late")))
    tavily = client(provider, tmp_path, timeout_s=1)
    assert ask(tavily, "q")[0][0].title == "late"
    assert len(provider.requests) == 2
    provider.script(reply)
    (error,) = ask(client(provider, tmp_path, timeout_s=1, attempts=2), "another")
    assert isinstance(error, ToolUnavailable)
    assert str(error).startswith("tavily: ")
    assert KEY not in str(error)
    assert len(provider.requests) == 4
    assert not (tmp_path / "cache").joinpath("x").exists()
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1  # a failure is not an answer


def test_a_timeout_and_a_dead_server(provider, tmp_path):
    provider.script((200, {}, answer("a"), 12), (200, {}, answer("b"), 0))
    started = time.monotonic()
    assert ask(client(provider, tmp_path, timeout_s=0.3), "q")[0][0].title == "b"
    assert time.monotonic() - started < 10
    (error,) = ask(client(provider, tmp_path, base_url="http://127.0.0.1:9", attempts=2), "x")
    assert str(error) == "tavily: ConnectError"


def test_retry_after_is_honoured_up_to_a_limit(provider, tmp_path, monkeypatch):
    provider.script((429, {"Retry-After": "1"}), (200, {}, answer("a")))
    started = time.monotonic()
    assert ask(client(provider, tmp_path), "q")[0][0].title == "a"
    assert time.monotonic() - started >= 0.95
    monkeypatch.setattr(tavily_module, "MAX_RETRY_AFTER_S", 0.2)
    provider.requests.clear()
    provider.script((429, {"Retry-After": "86400"}), (200, {}, answer("b")))
    started = time.monotonic()
    assert ask(client(provider, tmp_path), "r")[0][0].title == "b"
    assert 0.15 < time.monotonic() - started < 20
    assert MAX_RETRY_AFTER_S == 30


def test_the_deadline_of_the_tool_is_behind_all_attempts():
    # 3 x 10 s, 2 pauses of at most 30 s, 30 s for the rate limit
    assert Search(provider=TavilyOptions()).default_limits() == {"deadline_s": 120}
    patient = TavilyOptions(attempts=2, timeout_s=50)
    assert Search(provider=patient).default_limits() == {"deadline_s": 160}
    assert Search(provider=LocalOptions(index="x")).default_limits() == {}


def test_retry_after_as_a_date():
    now = datetime.now(UTC)
    soon = _retry_after(format_datetime(now + timedelta(seconds=100)))
    assert soon == pytest.approx(100, abs=5)
    assert _retry_after(format_datetime(now - timedelta(seconds=100))) == 0
    for header in (None, "soon", "nan", "inf"):
        assert _retry_after(header) is None
    assert _retry_after("-3") == 0
    assert _retry_after("2.5") == 2.5


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_service_repeats_reaches_nobody(provider, tmp_path, status, caplog):
    said = f"bad key Bearer {KEY.upper()} \x1b[2J"
    reply = {"results": [{"title": said, "url": said, "content": said}]}
    provider.script((status, {}, reply if status == 200 else {"detail": {"error": said}}))
    with caplog.at_level(logging.DEBUG):
        answer = ask(client(provider, tmp_path, attempts=1), "q")
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    for text in (str(answer), caplog.text, *files):
        assert KEY not in text.lower()
    if status in (400, 401):
        assert "bad key Bearer [secret] \\x1b[2J" in str(answer[0])


@pytest.mark.parametrize("status", [401, 403, 404, 432, 433, 302])
def test_a_bad_key_or_plan_is_not_retried_and_parks_at_once(provider, tmp_path, status, caplog):
    provider.script(
        (
            status,
            {"Location": "http://elsewhere.example"},
            {"detail": {"error": "Unauthorized: missing or invalid API key."}},
        )
    )
    clock = Clock()
    tavily = client(provider, tmp_path, clock)
    with caplog.at_level(logging.WARNING):
        (error,) = ask(tavily, "q")
    assert str(error) == f"tavily: HTTP {status}: Unauthorized: missing or invalid API key."
    assert "no request for 60 s" in caplog.text
    clock.now = 20
    (error,) = ask(tavily, "q")
    assert isinstance(error, ToolUnavailable)
    assert str(error).endswith("invalid API key.; parked, next request in 40 s")
    assert len(provider.requests) == 1


def test_parking_doubles_to_a_quarter_of_an_hour_and_ends_with_a_success(provider, tmp_path):
    clock = Clock()
    tavily = client(provider, tmp_path, clock, attempts=2)
    ask(tavily, "known")
    provider.requests.clear()
    provider.script((500,))
    for number in range(3):
        ask(tavily, f"q{number}")
    assert len(provider.requests) == 6  # three queries, two attempts each
    pauses = []
    for _ in range(6):
        (error,) = ask(tavily, "parked")
        pauses.append(int(str(error).split()[-2]))
        assert ask(tavily, "known")[0][0].title == "a"  # what is on disk is still served
        clock.now += pauses[-1] + 1
        # Still down. Three failures at once count as one.
        ask(tavily, *[f"probe{i}" for i in range(3)])
    assert pauses == [60, 120, 240, 480, 900, 900]
    clock.now += 901
    provider.requests.clear()
    provider.script((200, {}, answer("back")), (500,))
    assert ask(tavily, "q")[0][0].title == "back"
    assert str(ask(tavily, "r")[0]) == "tavily: HTTP 500"
    assert str(ask(tavily, "r")[0]) == "tavily: HTTP 500"  # not parked: the count began again


def test_queries_that_wait_for_the_rate_limit_notice_the_parking(provider, tmp_path):
    provider.script((401, {}, {"detail": "no"}))
    started = time.monotonic()
    errors = ask(client(provider, tmp_path, requests_per_minute=600), *[f"q{i}" for i in range(30)])
    assert all(isinstance(error, ToolUnavailable) for error in errors)
    assert len(provider.requests) < 30
    assert time.monotonic() - started < 20


def test_the_rate_limit(provider, tmp_path):
    started = time.monotonic()
    answers = ask(
        client(provider, tmp_path, requests_per_minute=600), *[f"q{i}" for i in range(16)]
    )
    assert all(isinstance(a, list) for a in answers)
    assert time.monotonic() - started >= 0.55  # 10 at once, 6 more at 10 a second


def test_a_caller_that_gives_up_leaves_the_request_to_the_others(provider, tmp_path):
    provider.script((200, {}, answer("a"), 0.5))
    tavily = client(provider, tmp_path)

    async def two():
        impatient = asyncio.create_task(asyncio.wait_for(tavily.search("q", 5), 0.1))
        patient = asyncio.create_task(tavily.search("q", 5))
        return await asyncio.gather(impatient, patient, return_exceptions=True)

    first, second = LOOP.run_until_complete(two())
    assert isinstance(first, TimeoutError)
    assert second[0].title == "a"
    assert len(provider.requests) == 1


def test_odd_results_are_read_as_text(provider, tmp_path):
    odd = {"results": [{"title": None, "url": "u", "content": "x\ud800", "score": None}, {}]}
    provider.script((200, {}, odd))
    assert ask(client(provider, tmp_path), "q")[0] == [
        Result("", "u", "x?", 0.0),
        Result("", "", "", 0.0),
    ]


def test_close_ends_what_is_in_flight(provider, tmp_path):
    provider.script((200, {}, answer("a"), 2))

    async def run():
        tavily = client(provider, tmp_path)
        waiting = asyncio.create_task(tavily.search("q", 5))
        while not provider.requests:
            await asyncio.sleep(0.01)
        tavily.close()
        return await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), 1.5)

    assert isinstance(LOOP.run_until_complete(run())[0], asyncio.CancelledError)
