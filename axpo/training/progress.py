"""What a person sees while a run runs.

On a terminal a table of the last steps and a live bar, in a job's log one line for each step, at
the end a summary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from axpo.record.summary import before_after, duration
from axpo.record.transcript import Transcript
from axpo.texts import printable

SHOWN = {
    "pass1": ("pass@1", "{:.2f}"),
    "tool_use_rate": ("tool use", "{:.2f}"),
    "tool_all_wrong_rate": ("all wrong", "{:.2f}"),
    "recovery_rate": ("recovery", "{:.2f}"),
    "tokens_per_second": ("tok/s", "{:,.0f}"),
}
"""Label and format of the metrics that are shown each step. A missing one is shown as '-'."""
REMARKS = {
    "end/out_of_tokens": ("out of tokens", "{:.2f}"),
    "groups_dropped": ("dropped", "{:.0f}"),
    "questions_aborted": ("aborted", "{:.0f}"),
    "questions_unusable": ("set aside", "{:.0f}"),
    "groups_stale": ("stale", "{:.0f}"),
    "forks_dropped": ("forks dropped", "{:.0f}"),
    "verifier_failures": ("verifier failures", "{:.0f}"),
    "requeued": ("asked again", "{:.0f}"),
    "skipped": ("updates skipped", "{:.0f}"),
}
"""Of metrics that are shown only if they are not zero."""
STEPS_SHOWN = 8
"""Rows of the table on a terminal."""
SET_ASIDE_SHOWN = 5
"""Questions of a step or an evaluation that are named if they cannot be asked."""


class PhaseTimer:
    """Count seconds by phase.

    Phases nest. A second counts for the innermost phase only, so the phases add up to the wall
    clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._stack: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's seconds for `name`."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, as `time/<phase>`."""
        self._charge()
        taken = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds = {}
        return taken

    def _charge(self) -> None:
        now = self._clock()
        if self._stack:
            innermost = self._stack[-1]
            self.seconds[innermost] = self.seconds.get(innermost, 0.0) + now - self._last
        self._last = now


class Progress:
    """Show the progress of a run. Use it as a context manager."""

    def __init__(self, steps: int, done: int = 0, console: Console | None = None) -> None:
        """Prepare to show a run of `steps` steps, of which `done` are behind it (a resume)."""
        self.timer = PhaseTimer()
        self.console = console or Console()
        self._steps = steps
        self._first = done
        self._seconds = 0.0  # of the steps alone: not of starting or of the first evaluation
        self._rows: deque[Sequence[str]] = deque(maxlen=STEPS_SHOWN)
        # A step takes seconds to minutes: rich's default window of 30 s would see too few of them
        # to tell how long the rest takes.
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            speed_estimate_period=1800,
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done)
        self._live = (
            Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as `name`, and show it as what is happening now."""
        outer = self._bar.tasks[0].description
        self._bar.update(self._task, description=name)
        try:
            with self.timer.phase(name):
                yield
        finally:
            self._bar.update(self._task, description=outer)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that a step is done.

        Args:
            step: the step, counted from 1.
            metrics: its numbers, `time/<phase>` among them.
        """
        self._bar.update(self._task, completed=step)
        phases = _phases(metrics)
        seconds = sum(phases.values())
        self._seconds += seconds - phases.get("start", 0.0)
        left = self._seconds / max(step - self._first, 1) * (self._steps - step)
        spent = ", ".join(f"{name} {value:.1f}" for name, value in phases.items())
        remarks = _remarks(metrics)
        numbers = "  ".join(
            [*(f"{SHOWN[name][0]} {_shown(metrics, name)}" for name in SHOWN), *remarks]
        )
        line = (
            f"step {step}/{self._steps}  {numbers}  {seconds:.1f} s ({spent})  eta {duration(left)}"
        )
        if self._live is None:
            self.say(line)
            return
        # The table is drawn again and again, so it is not what a log keeps.
        values = [_shown(metrics, name) for name in SHOWN]
        self._rows.append((f"{step}", *values, f"{seconds:.1f} s", ", ".join(remarks)))
        if isinstance(self.console, Transcript):
            self.console.note(line)

    def set_aside(self, what: str, reasons: Sequence[str]) -> None:
        """Print why questions could not be asked, a line each for the first few.

        Args:
            what: what kind of question they are.
            reasons: of each question one line.
        """
        for reason in reasons[:SET_ASIDE_SHOWN]:
            self.say(f"{what} set aside: {reason}")
        more = len(reasons) - SET_ASIDE_SHOWN
        if more > 0:
            self.say(f"{more} more {what}{'s' if more > 1 else ''} set aside")

    def say(self, text: str) -> None:
        """Print one line of log, above the live display if there is one; it may repeat a file."""
        self.console.print(Text(printable(text)), soft_wrap=True)

    def _render(self) -> RenderableType:
        if not self._rows:
            return self._bar
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("step", *(label for label, _ in SHOWN.values()), ""):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", style="yellow")
        for row in self._rows:
            table.add_row(*row, style="cyan" if row is self._rows[-1] else "")
        return Group(table, self._bar)


def _shown(metrics: Mapping[str, float], name: str) -> str:
    _, form = SHOWN[name]
    return form.format(metrics[name]) if metrics.get(name) is not None else "-"


def _remarks(metrics: Mapping[str, float]) -> list[str]:
    """Return what a person should know of a step that is not as it should be."""
    return [
        f"{label} {form.format(metrics[name])}"
        for name, (label, form) in REMARKS.items()
        if metrics.get(name)
    ]


def _phases(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each phase, in the order of the metrics."""
    prefix = "time/"
    timed = [name for name in metrics if name.startswith(prefix)]
    return {name.removeprefix(prefix): metrics[name] for name in timed}


def summary_table(summary: Mapping[str, Any], title: str, paths: Mapping[str, Path]) -> Panel:
    """Show a run that ended on one screen.

    Args:
        summary: each pair `<name>_start`, `<name>_end` of it stands side by side, then the cost.
        title: of the panel.
        paths: where to look, by what is there.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("held-out")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, start, end in before_after(summary):
        # Without an evaluation of the start model there is nothing to compare with.
        before = "–" if start is None else f"{start:.1%}"
        change = "" if start is None else f"{100 * (end - start):+.1f} pts"
        shown = Text(printable(name))  # a task may call its families as it likes
        table.add_row(shown, before, f"{end:.1%}", Text(change, style="bold"))
    seconds = duration(summary["seconds"])
    cost = f"{summary['steps']} steps, {seconds}, {summary['tokens']:,} tokens generated"
    width = max((len(name) for name in paths), default=0)
    lines = [Text(f"{name:<{width}}  {path}", overflow="fold") for name, path in paths.items()]
    return Panel(
        Group(table, Text(""), Text(cost), *lines),
        title=Text(title),
        title_align="left",
        padding=(1, 2),
        expand=False,
    )
