"""The form of every benchmark's result: a file of entries beside machine and versions, and a table.

A benchmark is a module of this folder with a function `measure` that yields entries. A command
(`learner.py`, `rollouts.py`, `tools.py`) names its modules and the entries it expects of them.
"""

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
from typing import Any, Literal, NoReturn, TypedDict

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


Measure = Callable[[], Iterable[Entry]]


def at_least(name: str, value: float, target: float, unit: str, detail: str) -> Entry:
    """Return an entry that should reach its target or more; the arguments are those of `Entry`."""
    return Entry(name=name, value=value, target=target, better="higher", unit=unit, detail=detail)


def at_most(name: str, value: float, target: float, unit: str, detail: str) -> Entry:
    """Return an entry that should stay below its target; the arguments are those of `Entry`."""
    return Entry(name=name, value=value, target=target, better="lower", unit=unit, detail=detail)


def met(entry: Entry) -> bool:
    """Return whether the value reaches its target."""
    if entry["better"] == "higher":
        return entry["value"] >= entry["target"]
    return entry["value"] <= entry["target"]


def run(
    name: str,
    expected: Sequence[str],
    measures: Sequence[Measure],
    packages: Sequence[str] = (),
    *,
    keep_others: bool = False,
) -> int:
    """Measure, write `results/<name>.json` and print it as a table.

    A measure that fails loses only what it had not yielded yet.

    Args:
        name: of the result file.
        expected: names of the entries that the file should have.
        measures: what is run, one after the other.
        packages: whose versions are noted.
        keep_others: whether entries stay that are in the file and are not measured now. What the
            file says of the machine stays, too: the times in it were measured there.

    Returns:
        An exit code: 1 if one of the expected entries could not be measured. A missed target is no
        failure.
    """
    console = Console()
    file = RESULTS / f"{name}.json"
    about: dict[str, Any] = {"machine": machine(), "versions": versions(packages)}
    earlier: list[Entry] = []
    if keep_others:
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["versions"] != about["versions"]:
            raise ValueError(f"{file} is of other versions; measure all of it again")
        about["machine"], earlier = result["machine"], result["entries"]
    entries = _measured(measures, console, earlier)
    # A file that grew part by part has the order of one that was measured at once.
    entries.sort(key=lambda entry: [*expected, entry["name"]].index(entry["name"]))
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(about | {"entries": entries}, indent=2) + "\n", encoding="utf-8")
    console.print(table(entries))
    measured = [entry["name"] for entry in entries]
    missing = [name for name in expected if name not in measured]
    for absent in missing:
        console.print(Text(f"{absent}: not measured", "red"))
    return 1 if missing else 0


def imported(module: str) -> Measure:
    """Return the `measure` of a module of this folder, imported when it is called.

    So a module that cannot be imported counts as not measured, and the others still run.
    """

    def measure() -> Iterable[Entry]:
        found: Measure = importlib.import_module(f"benchmarks.{module}").measure
        return found()

    measure.__module__ = module
    return measure


def table(entries: Sequence[Entry]) -> Table:
    """Return name, value, target and detail of each entry."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("benchmark", no_wrap=True)
    for column in ("value", "target"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("detail", style="dim", overflow="fold")
    for entry in entries:
        value = Text(f"{entry['value']:.4g} {entry['unit']}", "green" if met(entry) else "red")
        sign = ">=" if entry["better"] == "higher" else "<="
        shown.add_row(entry["name"], value, f"{sign} {entry['target']:g}", entry["detail"])
    return shown


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
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
    """Return the versions of Python, and of packages that a number depends on."""
    found = {"python": platform.python_version()}
    for package in packages:
        found[package] = metadata.version(package)
    return found


def exit_with(code: int) -> NoReturn:
    """End the process, whatever threads a failed measurement left."""
    # os._exit does not flush.
    sys.stdout.flush()
    os._exit(code)


def _measured(
    measures: Sequence[Measure], console: Console, earlier: Sequence[Entry]
) -> list[Entry]:
    """Return earlier entries and those of all measures; of two with one name the later."""
    entries = {entry["name"]: entry for entry in earlier}
    for measure in measures:
        try:
            with console.status(measure.__module__):
                for entry in measure():
                    entries[entry["name"]] = entry
        except Exception:
            # One benchmark must not cost the others: the command says at the end what is missing.
            console.print(Text(f"{measure.__module__} could not be measured", "red"))
            traceback.print_exc()
    return list(entries.values())


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
