"""What `axpo eval` does with benchmarks: read its options, and print tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.inputs import print_line, print_lines, print_warnings
from axpo.texts import closest, printable

if TYPE_CHECKING:
    from axpo.evaluation.compare import Comparison

SHOWN_REASONS = 5


def load_any(target: Path, overrides: Sequence[str], *, benchmarks: bool) -> tuple[Recipe, str]:
    """Return recipe and model of a target: a run, a recipe, or a model without one.

    Raises:
        AxpoError: it is none of them, or a model without a recipe has no questions.
    """
    from axpo.evaluation.bare import is_model, model_recipe
    from axpo.evaluation.held_out import load_target
    from axpo.shipped import recipe_file, recipe_names

    # A name of the hub has nothing on disk, and can only be meant with benchmarks.
    is_there = target.exists() or recipe_file(str(target)) is not None
    if not is_there and not (benchmarks and is_model(str(target))):
        meant = closest(target.name.removesuffix(".yaml"), recipe_names())
        near = f"; did you mean {meant}?" if meant else ""
        raise AxpoError(
            f"eval: {target}: nothing is there; expected a recipe, a run directory or a model "
            f"folder{near} (a model of the hub needs --suite or --benchmark)"
        )
    if not is_model(str(target)):
        return load_target(target, overrides)
    if not benchmarks:
        raise AxpoError(
            f"{target} is a model without held-out questions: give --suite or --benchmark, or a "
            f"recipe with --set model={target}"
        )
    return model_recipe(str(target), overrides), str(target)


def run_benchmarks(
    target: Path, recipe: Recipe, model: str, options: Mapping[str, Any], console: Console
) -> None:
    """Measure benchmarks, print the table, and write the page.

    Args:
        target: what the command names.
        recipe: how engines and tools are started.
        model: folder or hub name of the model.
        options: those of the command, as typed.
        console: where things are printed.
    """
    from axpo.evaluation.suite import evaluate, prepare
    from axpo.report.evaluation import render_evaluation

    # Files of gigabytes are unpacked the first time.
    with console.status("reading the benchmarks"):
        evaluation = prepare(target, recipe, model, _options(options))
    print_warnings(evaluation.doubts, console)
    print_line(f"results {evaluation.out}", console)
    with console.status("evaluating") as status:

        def progress(what: str, done: int, total: int) -> None:
            status.update(Text(printable(f"{what}: {done} of {total}")))

        summary = evaluate(evaluation, progress)
    print_summary(summary, console)
    page = render_evaluation(evaluation.out)
    print_line(f"report {page}", console)


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print the table of an evaluation, and what was set aside."""
    most = f"pass{summary['samples']}"
    table = _table(f"{summary['model']} · judge: {summary['judge']}")
    columns = ("asked", "Pass@1", f"Pass@{summary['samples']}", "tool use", "paper*")
    _add_columns(table, columns)
    for part in summary["benchmarks"].values():
        table.add_row(
            Text(printable(part["title"])),
            str(part["measured"]),
            shown(part.get("pass1")),
            shown(part.get(most)),
            _percent(part["tool_use"]),
            paper(part),
        )
    average = summary["average"]
    table.add_row("average", "", shown(average.get("pass1")), shown(average.get(most)), "", "")
    console.print(table)
    console.print("95 % intervals over questions", highlight=False)
    console.print(
        "* quoted from arXiv 2605.28774, 8B SFT+AXPO, Pass@1; prompts and judge differ",
        highlight=False,
        soft_wrap=True,
    )
    for name, part in summary["benchmarks"].items():
        _print_set_aside(name, part["set_aside"], console)


def run_comparison(first: Path, second: Path, out: Path | None, console: Console) -> None:
    """Compare two evaluations, print the table, and write it and its page into a folder.

    Args:
        first: the folder of A.
        second: the folder of B.
        out: where page and numbers are written; None: nowhere.
        console: where things are printed.
    """
    from axpo.evaluation.compare import compare
    from axpo.report.comparison import write_comparison

    found = compare(first, second)
    page = write_comparison(first, second, found, out) if out is not None else None
    print_comparison(first, second, found, console)
    if page is not None:
        print_line(f"report {page}", console)


def print_comparison(first: Path, second: Path, found: Comparison, console: Console) -> None:
    """Print what the second evaluation does better than the first."""
    table = _table(f"B = {second} against A = {first}")
    columns = ("asked", "A", "B", "B - A", "95 % interval", "better", "worse", "p*")
    _add_columns(table, columns)
    for one in found.differences:
        change = one.difference.to_json()
        table.add_row(
            Text(printable(one.title)),
            str(one.questions),
            f"{100 * one.first:.1f}",
            f"{100 * one.second:.1f}",
            *points(change),
            str(one.better),
            str(one.worse),
            f"{one.p_value:.3g}",
        )
    if found.average is not None:
        change = found.average.to_json()
        table.add_row("average", "", "", "", *points(change), "", "", "")
    console.print(table)
    print_line("* McNemar's exact test of better against worse", console)
    for one in found.differences:
        if one.only_one:
            print_line(f"{one.benchmark}: measured in one of them only: {one.only_one}", console)
    print_warnings((f"they differ in {warning}" for warning in found.warnings), console)


def shown(estimate: Mapping[str, float] | None) -> str:
    """Return a rate with its interval, in percent; a dash if it is not defined."""
    if estimate is None:
        return "–"
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def points(estimate: Mapping[str, float]) -> tuple[str, str]:
    """Return a difference and its interval, in points."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}"


def paper(part: Mapping[str, Any]) -> str:
    """Return what the paper reports for its best 8B model."""
    quoted = part["quoted_from_the_paper"].get("8B SFT+AXPO")
    return f"{100 * quoted['pass1']:.1f}" if quoted else "–"


def _print_set_aside(name: str, set_aside: Mapping[str, Any], console: Console) -> None:
    if not set_aside["counts"]:
        return
    counts = ", ".join(f"{count} {word}" for word, count in set_aside["counts"].items())
    line = Text.assemble(("set aside", "yellow"), printable(f" {name}: {counts}"))
    console.print(line, soft_wrap=True)
    reasons = [f"{key}: {reason}" for key, reason in set_aside["reasons"].items()]
    print_lines(reasons[:SHOWN_REASONS], console)
    if len(reasons) > SHOWN_REASONS:
        print_lines([f"and {len(reasons) - SHOWN_REASONS} more, see summary.json"], console)


def _percent(estimate: Mapping[str, float] | None) -> str:
    return "–" if estimate is None else f"{100 * estimate['value']:.1f}"


def _table(title: str) -> Table:
    """Return a table that fits into 80 columns with nine benchmarks."""
    return Table(
        title=Text(printable(title), overflow="fold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
        header_style="dim",
    )


def _add_columns(table: Table, names: Sequence[str]) -> None:
    table.add_column("benchmark", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _options(given: Mapping[str, Any]) -> Any:
    """Return the options of the command, read."""
    from axpo.evaluation.suite import Options, names_of, parse_judge

    if given["data"] is None:
        raise AxpoError("--data: expected the folder with the benchmarks' files")
    return Options(
        names=names_of(given["suite"], given["benchmark"]),
        data=given["data"],
        judge=parse_judge(given["judge"]),
        samples=given["samples"],
        temperature=given["temperature"],
        tools=_names(given["tools"]),
        image_search=given["image_search"],
        rotations=given["rotations"],
        variants=given["variants"],
        limit=given["limit"],
        seed=given["seed"],
        out=given["out"],
    )


def _names(text: str | None) -> Sequence[str] | None:
    """Return the names in a list with commas; `none` is an empty one."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
