"""A server that speaks OpenAI's protocol, and misbehaves as it is told to."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from axpo.tasks.judge import judges

# Where a server is slow. A reply that is no fault must come in time on a busy machine, too.
SLOW_S = 4.0
TIMEOUT_S = 3.0


class Server:
    """Judges by itself whether the answer's number is even, or does what `faults` says."""

    def __init__(self, faults=lambda number: None, key=None):
        self.faults, self.key = faults, key
        self.requests, self.verdicts, self.bodies = 0, Counter(), []
        self.running = self.most = 0
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler):
        with self.lock:
            self.requests += 1
            number = self.requests
            self.times.append(time.monotonic())
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.bodies.append(body)
        if self.key and handler.headers["Authorization"] != f"Bearer {self.key}":
            return self.send(handler, 401, b"{}")
        fault = self.faults(number)
        if fault is None:
            answer = re.search(r"<answer>\n(.*)\n</answer>", body["messages"][1]["content"], re.S)[
                1
            ]
            even = int(answer.split()[-1]) % 2 == 0
            self.send(handler, 200, reply("Yes." if even else "No"))
            with self.lock:
                self.verdicts[answer] += 1
        elif fault == "slow":
            time.sleep(SLOW_S)
            self.send(handler, 200, reply("Yes"))
        elif fault == "cut":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
            handler.close_connection = True
        elif fault == "packed":
            # What says that it is packed, and is not.
            self.send(handler, 200, reply("Yes"), {"Content-Encoding": "gzip"})
        elif isinstance(fault, int):
            self.send(handler, fault, b'{"error": "busy"}', {"Retry-After": "0"})
        else:
            self.send(handler, 200, fault)

    def send(self, handler, status, body, headers=()):
        handler.send_response(status)
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def reply(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


GARBAGE = (b"<html>", b"[]", b'{"choices": []}', reply(None), b'{"choices": [{"message": 7}]}')
# Also half of a reply, an empty one, one of bytes that are no text, and one without end.
GARBAGE += (reply("Yes")[:-9], b"", b"\xff\xfe\x00", b"[" * 100_000)
FAULTS = (408, 429, 500, 502, 503, "slow", "cut", "packed", *GARBAGE)


@contextmanager
def serving(*args, **options):
    server = Server(*args, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with server.lock:
                server.running += 1
                server.most = max(server.most, server.running)
            try:
                server.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a client that did not wait
            finally:
                with server.lock:
                    server.running -= 1

        def log_message(self, *args):
            pass

    server.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.http.daemon_threads = True
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def endpoint(server, **options):
    settings = {"name": "endpoint", "base_url": server.url, "model": "m", "timeout_s": 30.0}
    return judges.parse({**settings, "backoff_s": 0.01, "attempts": 40, **options})


def random_faults(seed, kinds, share=0.4):
    def fault(number):
        draw = random.Random(f"{seed}/{number}")
        return draw.choice(kinds) if draw.random() < share else None

    return fault
