"""A local server that speaks Tavily's protocol, and a client of it."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tool_server.search.options import TavilyOptions
from tool_server.search.tavily import Tavily

KEY = "tvly-secret"
LOOP = asyncio.new_event_loop()
"""One for all calls, as in a server: connections and limiter belong to it."""


def answer(*titles: str) -> dict:
    results = [
        {
            "title": t,
            "url": f"https://{t}.example",
            "content": f"about {t}",
            "score": 0.5,
            "raw_content": None,
        }
        for t in titles
    ]
    return {
        "query": "q",
        "answer": None,
        "images": [],
        "results": results,
        "response_time": 0.1,
        "request_id": "x",
    }


class Provider:
    """Answer with the scripted replies in turn, and with the last one for ever.

    A reply is (status, headers, body, seconds before it).
    """

    def __init__(self):
        self.replies = [(200, {}, answer("a", "b", "c"), 0)]
        self.requests: list[tuple[str, dict, dict]] = []
        self.lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with provider.lock:
                    provider.requests.append((self.path, dict(self.headers), body))
                    status, headers, reply, delay = provider.replies[
                        min(len(provider.requests), len(provider.replies)) - 1
                    ]
                time.sleep(delay)
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in (
                    {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
                ).items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:  # the client had enough
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # connections that tests break on purpose
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def script(self, *replies):
        self.replies = [(*reply, *[{}, answer("a"), 0][len(reply) - 1 :]) for reply in replies]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def client(provider, tmp_path, clock=time.monotonic, **options) -> Tavily:
    settings = {
        "base_url": provider.url,
        "cache": str(tmp_path / "cache"),
        "requests_per_minute": 60_000,
        "timeout_s": 5,
    } | options
    return Tavily("tavily-search", TavilyOptions.model_validate(settings), clock)


def ask(tavily: Tavily, *queries: str, k: int = 5) -> list:
    """Return one answer or exception per query, asked at the same time."""

    async def together():
        return await asyncio.gather(
            *(tavily.search(query, k) for query in queries), return_exceptions=True
        )

    return LOOP.run_until_complete(together())
