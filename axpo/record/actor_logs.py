"""What engines, ranks and tool servers print, collected in a run's folder `logs/`.

One file for each process, wherever it ran: `engine-0-10.0.0.2-4711.log`. The processes print what
libraries and policies make them print, so nothing in it is trusted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from axpo.record.files import appending
from axpo.texts import printable

_Process: TypeAlias = tuple[str, str]
"""The address of its node, and its id."""
FOLDER = "logs"
MAX_BYTES = 32 << 20
"""Of a file. A fuller one is kept once under another name, and the process goes on in a new one."""
_LEFT_OUT = ("autoscaler",)
"""Processes of Ray that print pages about nothing, every few seconds."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ODD = re.compile(r"[^\w.-]+")


class ActorLogs:
    """Write batches of lines into a folder, one file for each process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[_Process, TextIO] = {}
        self._names: dict[_Process, str] = {}
        self._lock = threading.Lock()

    def write(self, batch: Mapping[str, Any]) -> None:
        """Append a batch as Ray's log monitor sends it: who printed, where, and the lines.

        Any thread may call this.
        """
        process = (str(batch.get("ip", "")), str(batch.get("pid", "")))
        if process[1] in _LEFT_OUT:
            return
        lines = [printable(_COLOUR.sub("", str(line)).rstrip()) + "\n" for line in batch["lines"]]
        with self._lock:
            file = self._file(process, _name_of(batch.get("actor_name"), process))
            # One call: the file is written at each.
            file.write("".join(lines))

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files, self._names = {}, {}

    def _file(self, process: _Process, name: str) -> TextIO:
        """Return the open file of a process."""
        path = self.folder / f"{name}.log"
        before = self._names.get(process)
        if before == name and self._files[process].tell() <= MAX_BYTES:
            return self._files[process]
        self.folder.mkdir(parents=True, exist_ok=True)
        if before is not None:
            self._files[process].close()
        if before == name:
            path.replace(path.with_suffix(".before.log"))
        elif before is not None:
            # While an actor starts it has the name of its class only.
            (self.folder / f"{before}.log").replace(path)
        self._names[process] = name
        self._files[process] = appending(path)
        return self._files[process]


def _name_of(actor: str | None, process: _Process) -> str:
    """Return what the file of a process is called: who, on which node, with which id."""
    ip, pid = process
    # The processes of Ray itself have a name instead of an id.
    parts = [actor or "worker", ip, pid] if pid.isdecimal() else [pid, ip]
    return _ODD.sub("_", "-".join(part for part in parts if part))[:120]
