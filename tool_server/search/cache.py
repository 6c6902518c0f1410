"""Answers of a provider on disk, so that all rollouts of a question see the same results."""

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
    """One file per (provider, normalised query, number of results, UTC day). On a shared file system, one cache for all servers."""

    def __init__(self, folder: Path, provider: str) -> None:
        """`provider` holds everything that shapes an answer besides the query. Raises ToolUnavailable where nothing can be written."""
        self._folder, self._provider = folder, provider
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ToolUnavailable(f"search cache {folder}: {error.strerror}") from None

    def path(self, query: str, max_results: int) -> Path:
        """Case, width and spacing of a query make no difference."""
        words = " ".join(unicodedata.normalize("NFKC", query).casefold().split())
        day = datetime.now(UTC).date().isoformat()
        key = hashlib.sha256(
            json.dumps([self._provider, words, max_results, day]).encode()
        ).hexdigest()
        return self._folder / day / f"{key}.json"

    def get(self, path: Path) -> list[Result] | None:
        """None where there is no answer yet, or none that can be read."""
        try:
            return [Result(**row) for row in json.loads(path.read_bytes())]
        except (OSError, ValueError, TypeError):
            return None

    def put(self, path: Path, results: Sequence[Result]) -> list[Result]:
        """Stores an answer; returns the one that counts: of servers that asked at the same time, the first one's."""
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".new", encoding="utf-8"
        ) as file:
            json.dump([asdict(result) for result in results], file)
            file.flush()
            try:
                os.link(file.name, path)
            except FileExistsError:
                first = self.get(path)
                if first is not None:
                    return first
                os.unlink(path)  # damaged
                os.link(file.name, path)
        return list(results)
