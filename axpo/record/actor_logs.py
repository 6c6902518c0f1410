"""What engines, ranks and tool servers print, collected in a run's folder `logs/`.

One file for each process, wherever it ran: `engine-0-10.0.0.2-4711.log`. The processes print what
libraries and policies make them print, so nothing in it is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from axpo.texts import printable

FOLDER = "logs"
MAX_BYTES = 32 << 20
"""Of a file. A fuller one is kept once under another name, and the process goes on in a new one."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ODD = re.compile(r"[^\w.-]+")


class ActorLogs:
    """Write batches of lines into a folder, one file for each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, TextIO] = {}

    def write(self, batch: Mapping[str, Any]) -> None:
        """Append a batch as Ray's log monitor sends it: who printed, where, and the lines."""
        name = _name_of(batch)
        file = self._files.get(name)
        if file is None or file.tell() > MAX_BYTES:
            file = self._opened(name)
        for line in batch["lines"]:
            file.write(printable(_COLOUR.sub("", str(line)).rstrip()) + "\n")
        file.flush()

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def _opened(self, name: str) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.log"
        if name in self._files:
            self._files[name].close()
            path.replace(path.with_suffix(".before.log"))
        file = path.open("a", encoding="utf-8", errors="replace")
        self._files[name] = file
        return file


def _name_of(batch: Mapping[str, Any]) -> str:
    """Return what the file of a process is called: who, on which node, with which id."""
    who = batch.get("actor_name") or "worker"
    parts = [str(who), str(batch.get("ip", "")), str(batch.get("pid", ""))]
    return _ODD.sub("_", "-".join(part for part in parts if part))[:120]
