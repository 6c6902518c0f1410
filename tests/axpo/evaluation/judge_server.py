"""Stand in for vLLM's server: it takes its options, and says Yes to every answer with a 7.

python -m tests.axpo.evaluation.judge_server --model NAME --port N ...
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "judge"
        said = "Yes" if "7" in body["messages"][1]["content"].partition("<answer>")[2] else "No"
        self.reply(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    for name in ("--model", "--port", "--host", "--served-model-name"):
        options.add_argument(name)
    given = options.parse_args()
    if given.model == "broken":
        sys.exit("ValueError: no such model")
    ThreadingHTTPServer((given.host, int(given.port)), Handler).serve_forever()
