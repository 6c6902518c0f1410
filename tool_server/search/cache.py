"""Keep a provider's answers on disk, so that all rollouts of a question see the same results."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tool_server.search.results import Result
from tool_server.tool import ToolUnavailable


class DiskCache:
    """One file per (provider, normalised query, number of results, UTC day).

    On a shared file system, it is one cache for all servers.
    """

    def __init__(self, folder: Path, provider: str) -> None:
        """Open the cache.

        Args:
            folder: made if it does not exist.
            provider: everything that shapes an answer besides the query.

        Raises:
            ToolUnavailable: nothing can be written to the folder.
        """
        self._folder = folder
        self._provider = provider
        # Tried at the start: a run should not find out at its first answer.
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ToolUnavailable(f"search cache {folder}: {error.strerror}") from None

    def path(self, query: str, max_results: int) -> Path:
        """Return the file of today's answer.

        Case, width and spacing of a query make no difference.
        """
        words = " ".join(unicodedata.normalize("NFKC", query).casefold().split())
        day = datetime.now(UTC).date().isoformat()
        key = json.dumps([self._provider, words, max_results, day])
        return self._folder / day / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def get(self, path: Path) -> list[Result] | None:
        """Return an answer; None if there is none yet, or none that can be read."""
        try:
            return [Result(**row) for row in json.loads(path.read_bytes())]
        except (OSError, ValueError, TypeError, RecursionError):
            # Not there, damaged, or of another form of results: ask the provider.
            return None

    def put(self, path: Path, results: Sequence[Result]) -> list[Result]:
        """Store an answer, and return the one that counts.

        Of several servers that asked at the same time, the first one's answer counts.
        """
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".new", encoding="utf-8"
        ) as file:
            json.dump([asdict(result) for result in results], file)
            file.flush()
            # A link appears at once and whole, and only one server can make it.
            try:
                os.link(file.name, path)
            except FileExistsError:
                first = self.get(path)
                if first is not None:
                    return first
                os.unlink(path)  # damaged
                os.link(file.name, path)
        return list(results)
