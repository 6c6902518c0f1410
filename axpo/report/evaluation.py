"""One self-contained page about an evaluation: the table, categories, and answers with crops."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axpo.evaluation.answers import final_text
from axpo.evaluation.results import IMAGES, TRAJECTORIES, Row, disk_error, read_evaluation
from axpo.record.files import read_rows, replace_file
from axpo.record.records import ImageFolder
from axpo.report.images import Images
from axpo.report.rollout_view import SURE, GroupView, group_view
from axpo.texts import clean, printable

if TYPE_CHECKING:
    from jinja2 import Environment

LISTED = 600
"""Questions of a benchmark whose answers the page lists; results.jsonl has all."""

LONGEST = 300
"""Characters of a text in the list."""


def render_evaluation(folder: Path) -> Path:
    """Write `report.html` into the folder of an evaluation and return its path.

    Raises:
        AxpoError: there is no evaluation that came to its end.
    """
    summary, questions, rows = read_evaluation(folder)
    html = (
        templates()
        .get_template("evaluation.html.jinja")
        .render(
            about=summary,
            table=_table(summary),
            paper=_paper(summary),
            parts=_parts(folder, summary, questions, rows),
            how=json.dumps(
                {name: summary[name] for name in ("command", "commit", "versions")}, indent=2
            ),
            images=Images(ImageFolder(folder / IMAGES)),
            SURE=SURE,
        )
    )
    out = folder / "report.html"
    try:
        replace_file(out, clean(html))
    except OSError as error:
        raise disk_error(folder, error) from None
    return out


def templates() -> Environment:
    """Return the templates of pages about evaluations. All that they show is escaped."""
    # jinja2 is slow to import, and only a page that is rendered needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def sample_view(row: Row) -> dict[str, Any]:
    """Return what a list shows of one sample."""
    return {
        "right": row["right"],
        "text": short(final_text(row["answer"] or "")) or row["end"].replace("_", " "),
        "by": row["by"],
        "reply": short(row["reply"]),
    }


def short(text: str) -> str:
    """Return the beginning of a text, as long as a list shows."""
    text = printable(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of all benchmarks."""
    passes = list(summary["average"])
    rows = []
    for part in summary["benchmarks"].values():
        rates = [_rate(part.get(name)) for name in passes]
        given = [_rate(part["tool_use"]), _rate(part["pass1_given_tool"])]
        rows.append([part["title"], f"{part['measured']} of {part['questions']}", *rates, *given])
    rows.append(["Average", "", *(_rate(summary["average"][name]) for name in passes), "", ""])
    head = ["", "Questions", *map(_pass_label, passes), "Tool use", "Pass@1 given tool use"]
    return {"head": head, "rows": rows}


def _paper(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of the paper's own numbers, a row a model."""
    parts = [part for part in summary["benchmarks"].values() if part["quoted_from_the_paper"]]
    models = dict.fromkeys(model for part in parts for model in part["quoted_from_the_paper"])
    rows = []
    for model in models:
        cells = [_quoted(part["quoted_from_the_paper"].get(model, {})) for part in parts]
        rows.append([model, *cells])
    return {"head": ["", *(part["title"] for part in parts)], "rows": rows}


def _parts(
    folder: Path, summary: Mapping[str, Any], questions: Sequence[Row], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return what the page shows of each benchmark."""
    samples: dict[str, list[Row]] = {}
    for row in rows:
        samples.setdefault(f"{row['benchmark']}/{row['question']}", []).append(row)
    groups: dict[str, list[GroupView]] = {}
    accepted = {f"{one['benchmark']}/{one['question']}": one["accepted"] for one in questions}
    place = {key: number for number, key in enumerate(accepted)}
    records = list(read_rows(folder / TRAJECTORIES))
    # They were written as they finished.
    for record in sorted(records, key=lambda record: place.get(record["question_id"], 0)):
        key = record["question_id"]
        if key in samples:
            view = _view(record, samples[key], accepted[key])
            groups.setdefault(record["benchmark"], []).append(view)
    found = []
    for name, part in summary["benchmarks"].items():
        asked = [one for one in questions if one["benchmark"] == name]
        found.append(
            {
                "title": part["title"],
                "facts": _facts(part),
                "set_aside": [
                    f"{key}: {reason}" for key, reason in part["set_aside"]["reasons"].items()
                ],
                "categories": [
                    _category(category, values) for category, values in part["categories"].items()
                ],
                "groups": groups.get(name, []),
                "answers": [
                    _answers(one, samples.get(f"{name}/{one['question']}", []))
                    for one in asked[:LISTED]
                ],
                "is_cut": len(asked) > LISTED,
            }
        )
    return found


def _view(record: Row, rows: Sequence[Row], accepted: Sequence[str]) -> GroupView:
    """Return the rollouts of a question with the verdicts that they got."""
    # None: there is no verdict.
    right = {row["sample"]: row["right"] for row in rows}
    rewards = {sample: None if one is None else float(one) for sample, one in right.items()}
    rollouts = [{**one, "reward": rewards.get(one["rollout"])} for one in record["rollouts"]]
    return group_view({**record, "rollouts": rollouts, "accepted": accepted})


def _answers(asked: Row, rows: Sequence[Row]) -> dict[str, Any]:
    samples = [sample_view(row) for row in rows]
    accepted = short(" · ".join(asked["accepted"]))
    return {"text": short(asked["text"]), "accepted": accepted, "samples": samples}


def _facts(part: Mapping[str, Any]) -> str:
    """Return what stands under the title of a benchmark."""
    judged = ", ".join(f"{count} by {who}" for who, count in part["judged_by"].items())
    facts = [f"{part['measured']} of {part['questions']} questions"]
    facts.append(f"verdicts: {judged or 'none'}")
    for name in ("f1", "worst_case"):
        value = part.get(name)
        if value is not None:
            shown = _rate(value) if isinstance(value, dict) else f"{100 * value:.1f}"
            facts.append(f"{name.replace('_', ' ')}: {shown}")
    return " · ".join([*facts, f"licence: {part['licence']}"])


def _category(category: str, values: Mapping[str, Any]) -> dict[str, Any]:
    passes = sorted(
        {name for one in values.values() for name in one if name.removeprefix("pass").isdigit()},
        key=lambda name: int(name.removeprefix("pass")),
    )
    rows = []
    for value, one in values.items():
        rates = [_rate(one.get(name)) for name in passes]
        rows.append([value, str(one["measured"]), *rates, _rate(one["tool_use"])])
    head = [category.capitalize(), "Questions", *map(_pass_label, passes), "Tool use"]
    return {"head": head, "rows": rows}


def _rate(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "–"
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f}–{high:.1f})"


def _quoted(numbers: Mapping[str, float]) -> str:
    shown = [
        f"{100 * numbers[name]:.1f}" if name in numbers else "–" for name in ("pass1", "pass4")
    ]
    return " / ".join(shown)


def _pass_label(name: str) -> str:
    return f"Pass@{name.removeprefix('pass')}"
