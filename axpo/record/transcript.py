"""A console that also writes what it shows into a file: `axpo.log` of a run."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.control import Control
from rich.file_proxy import FileProxy

from axpo.errors import AxpoError
from axpo.record.files import appending
from axpo.texts import printable

FILE = "axpo.log"
WIDTH = 160
"""Columns of tables in the file."""


class Transcript(Console):
    """Print as a console does, and keep it as plain lines, each with the time (UTC).

    What is printed before `written_to` is kept until then. A live display is not kept: whoever
    shows one adds what is worth keeping with `note`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Names of its own: the console has a `_file`.
        self._kept_form = Console(
            file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False
        )
        self._kept_pending: list[str] = []
        self._kept_file: TextIO | None = None

    @contextmanager
    def written_to(self, run: Path) -> Iterator[None]:
        """Write into a run's log during a block, and how the block ended.

        Warnings of Python's loggers are shown and written, too.

        Raises:
            AxpoError: the log is a link or no regular file.
        """
        handlers = {logging.getLogger(): _Shown(self), logging.getLogger("ray"): _Noted(self)}
        with appending(run / FILE) as file:
            self._kept_file = file
            file.writelines(self._kept_pending)
            self._kept_pending = []
            for logger, handler in handlers.items():
                logger.addHandler(handler)
            try:
                yield
            except AxpoError as error:
                # Whoever catches it prints the line; where it comes from is for this file alone.
                if error.__cause__ is not None:
                    self.note("".join(traceback.format_exception(error.__cause__)))
                self.note(f"error {error}")
                raise
            except (KeyboardInterrupt, SystemExit) as error:
                # Ctrl-C or SIGTERM before the first step, or after the last one.
                self.note(f"ended by {type(error).__name__} {error}".rstrip())
                raise
            except BaseException as error:
                self.note("".join(traceback.format_exception(error)))
                raise
            finally:
                for logger, handler in handlers.items():
                    logger.removeHandler(handler)
                self._kept_file = None

    def note(self, text: str) -> None:
        """Write into the file alone."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        lines = [f"{now} {printable(line).rstrip()}\n" for line in text.splitlines()]
        if self._kept_file is None:
            self._kept_pending += lines
        else:
            self._kept_file.writelines(lines)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich.console.Console.print` does, and keep it."""
        super().print(*objects, **options)
        # A live display prints controls alone when it draws itself again.
        if objects and not all(isinstance(one, Control) for one in objects):
            with self._kept_form.capture() as kept:
                self._kept_form.print(*objects, **options)
            # A live display ends with an empty line.
            if kept.get().strip():
                self.note(kept.get())


class _Shown(logging.Handler):
    """Show warnings. A handler of the root logger keeps Python from printing them itself."""

    def __init__(self, console: Transcript) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()} {record.name}: {record.getMessage()}"
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class _Noted(logging.Handler):
    """Write down what Ray's own handler prints on stderr."""

    def __init__(self, console: Transcript) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        # A live display has stderr printed on its console, which keeps it.
        if not isinstance(sys.stderr, FileProxy):
            self._console.note(f"{record.levelname.lower()} {record.name}: {record.getMessage()}")
