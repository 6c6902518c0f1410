"""The form of every benchmark's result: a file of entries beside machine and versions, and the same as a table."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

RESULTS = Path(__file__).with_name("results")


class Entry(TypedDict):
    """One measured number. A ratio's detail says of what, and how it was measured."""

    name: str
    value: float
    target: float
    better: Literal["higher", "lower"]
    unit: str
    detail: str


def met(entry: Entry) -> bool:
    """Whether the value reaches its target."""
    return (
        entry["value"] >= entry["target"]
        if entry["better"] == "higher"
        else entry["value"] <= entry["target"]
    )


def run(
    name: str,
    expected: Sequence[str],
    measures: Sequence[Callable[[], Iterable[Any]]],
    packages: Sequence[str] = (),
) -> int:
    """Measure, write `results/<name>.json` and print it as a table.

    A measure that fails loses what it had not yet yielded. Returns an exit code: 1 where one of the `expected` names could not be measured;
    a missed target is no failure.
    """
    console = Console()
    entries: dict[str, Entry] = {}
    for measure in measures:
        try:
            with console.status(measure.__module__):
                for entry in measure():
                    entries[entry["name"]] = entry
        except Exception:
            console.print(Text(f"{measure.__module__} could not be measured", "red"))
            traceback.print_exc()
    missing = [name for name in expected if name not in entries]
    RESULTS.mkdir(exist_ok=True)
    result = {
        "machine": machine(),
        "versions": versions(packages),
        "entries": list(entries.values()),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(table(list(entries.values())))
    for absent in missing:
        console.print(Text(f"{absent}: not measured", "red"))
    return 1 if missing else 0


def imported(module: str) -> Callable[[], Iterable[Any]]:
    """`measure` of a module of this folder, imported when it is called: what cannot be imported counts as not measured."""

    def measure() -> Iterable[Any]:
        return importlib.import_module(f"benchmarks.{module}").measure()

    measure.__module__ = module
    return measure


def table(entries: Sequence[Entry]) -> Table:
    """Name, value, target and detail of each entry."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("benchmark", no_wrap=True)
    for column in ("value", "target"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("detail", style="dim", overflow="fold")
    for entry in entries:
        good = met(entry)
        value = Text(f"{entry['value']:.4g} {entry['unit']}", "green" if good else "red")
        shown.add_row(
            entry["name"],
            value,
            f"{'>=' if entry['better'] == 'higher' else '<='} {entry['target']:g}",
            entry["detail"],
        )
    return shown


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "load_1min": round(load, 2),  # what else ran
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python, and of packages that a number depends on."""
    return {"python": platform.python_version()} | {
        package: metadata.version(package) for package in packages
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def exit_with(code: int) -> None:
    """End the process, whatever threads a failed measurement left."""
    sys.stdout.flush()
    os._exit(code)
