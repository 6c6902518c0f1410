"""A viewer as a user starts it, and a browser that looks at it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = (
    "chromium",
    "chromium-headless-shell",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
)
VIOLATION = "{id} ({impact}): {help}"


def chromium() -> str:
    """Return the browser of this machine; skip the test if there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    wanted = [os.environ.get("AXPO_CHROMIUM", ""), *map(shutil.which, NAMES)]
    found = [path for path in wanted if path]
    if not found:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or set AXPO_CHROMIUM")
    return found[0]


@contextmanager
def launched() -> Iterator[Any]:
    """Yield Playwright's browser."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container Chromium cannot make its own sandbox as root.
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextmanager
def served(*runs: Path, cache: Path) -> Iterator[str]:
    """Start `axpo view` and yield the address that it prints."""
    command = [sys.executable, "-u", "-m", "axpo.cli", "view", *map(str, runs)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--cache", str(cache)], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line
        yield line.split()[1]
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for(page: Any, condition: str, seconds: float = 20.0) -> None:
    """Wait until a condition holds on a page.

    Playwright's own `wait_for_function` compiles a text on the page, which the page's policy
    refuses.
    """
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


class Watcher:
    """Notes what a page of a viewer must not do."""

    def __init__(self, page: Any, origin: str) -> None:
        self.faults: list[str] = []
        page.on("console", lambda message: self._console(message))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request, origin))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    def _request(self, request: Any, origin: str) -> None:
        if not request.url.startswith(origin):
            self.faults.append(f"request: {request.url}")


def violations(page: Any) -> list[str]:
    """Return the serious findings of axe on a page."""
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    # The page runs no script but its own, so axe comes by the debugger.
    page.evaluate(axe.axe_script)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    told = []
    for one in serious:
        places = [node["target"] for node in one["nodes"][:3]]
        why = one["nodes"][0].get("failureSummary", "")
        told.append(f"{VIOLATION.format(**one)} at {places}: {why}")
    return told
