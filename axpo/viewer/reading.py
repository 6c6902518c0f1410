"""The pages to read rollouts on: one group, and two groups of one question side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from axpo.catalog.search import Key, Listed
from axpo.catalog.wanted import parse
from axpo.report.rollout_view import GroupView, Rollout, group_view
from axpo.viewer.listing import order_of, query_of, wanted_of
from axpo.viewer.site import NotThere, Site
from axpo.viewer.watched import Watched

ELSEWHERE = 60
"""Groups of one question, in one run, that a page links to."""
HELD_OUT_MOST = 1000
"""Questions of an evaluation that a page lists."""
COMMON = 300
"""Questions that the list of common ones shows."""


@dataclass(frozen=True)
class Side:
    """One of the two groups of a comparison."""

    run: Watched
    listed: Listed
    view: GroupView
    facts: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """How an address names it."""
        return name_of(self.run, self.listed.key)


def group(site: Site, request: Request) -> Response:
    """Return the page of one group: its rollouts as a tree."""
    run = site.run_of(request)
    key = key_of(request.path_params)
    listed, record = site.group(run, key)
    given = dict(request.query_params)
    keys = run.catalog.keys(wanted_of(given), order_of(given))
    place = keys.index(key) if key in keys else None
    view = group_view(record)
    same = _of_question(site, listed.facts["question"])
    others = [(other, one) for other, one in same if (other, one.key) != (run, key)]
    return site.page(
        request,
        "group.html.jinja",
        run,
        listed=listed,
        g=view,
        facts=facts_of(view),
        before=keys[place - 1] if place else None,
        after=keys[place + 1] if place is not None and place + 1 < len(keys) else None,
        place=place,
        total=len(keys),
        query=query_of(given),
        others=others,
        own=name_of(run, key),
        name_of=name_of,
        comparison=comparison,
    )


def record(site: Site, request: Request) -> Response:
    """Return the record of a group, as the run has it, to save."""
    key = key_of(request.path_params)
    _, found = site.group(site.run_of(request), key)
    name = f"{key.source}-step{key.step}-{key.place}.json"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(json.dumps(found), media_type="application/json", headers=headers)


def held_out(site: Site, request: Request) -> Response:
    """Return the held-out questions of a run, at its first and its last evaluation."""
    run = site.run_of(request)
    steps = run.catalog.steps("held-out")
    rows = []
    if steps:
        after = {one.facts["question"]: one for one in _evaluated(run, steps[-1])}
        before = _evaluated(run, steps[0])
        pairs = [(one, after.get(one.facts["question"])) for one in before]
        rows = [(one, other) for one, other in pairs if other is not None]
        rows.sort(key=lambda pair: pair[0].facts["reward"] - pair[1].facts["reward"])
    return site.page(
        request,
        "held_out.html.jinja",
        run,
        steps=steps,
        rows=rows,
        start_is_known=run.directory.start_is_known(),
        name_of=name_of,
        comparison=comparison,
    )


def compare(site: Site, request: Request) -> Response:
    """Return two groups of one question side by side; without them, which questions are common."""
    given = request.query_params
    names = [given.get(side, "") for side in ("left", "right")]
    if not any(names):
        return site.page(request, "common.html.jinja", None, rows=_common(site))
    left, right = (_side(site, name) for name in names)
    run = left.run if left.run is right.run else None
    before, after = _neighbours(left, right)
    return site.page(
        request,
        "compare.html.jinja",
        run,
        before=before,
        after=after,
        sides=[("left", left, _shown(site, left)), ("right", right, _shown(site, right))],
        question=left.view.record["question"],
        choices=_of_question(site, left.listed.facts["question"]),
        name_of=name_of,
    )


def key_of(parts: Mapping[str, Any]) -> Key:
    """Return the name of a group from the parts of an address."""
    return Key(str(parts["source"]), int(parts["step"]), int(parts["place"]))


def name_of(run: Watched, key: Key) -> str:
    """Return how an address names a group of any run."""
    return f"{run.index}.{key.source}.{key.step}.{key.place}"


def comparison(left: str, right: str) -> str:
    """Return the address of the page that shows two groups of these names side by side."""
    return f"/compare?{urlencode({'left': left, 'right': right})}"


def facts_of(view: GroupView) -> list[dict[str, Any]]:
    """Return what the table of a group says of each rollout and continuation."""
    rows = [_facts(rollout.title, rollout) for rollout in view.rollouts]
    for tree in view.trees:
        for branch in tree.branches[1:]:
            rows.append(_facts(f"{branch.title} of {tree.source.title.lower()}", branch))
    return rows


def _facts(title: str, rollout: Rollout) -> dict[str, Any]:
    record = rollout.record
    stats, credit = record["stats"], record.get("credit")
    segments = [segment for segment in record["segments"] if segment["kind"] == "policy"]
    logprobs = [logprob for segment in segments for logprob in segment["logprobs"]]
    return {
        "title": title,
        "right": rollout.right,
        "reward": record["reward"],
        "advantage": credit["advantage"] if credit else None,
        "end": record["end"].replace("_", " "),
        "turns": rollout.turns,
        "tokens": rollout.tokens,
        "seconds": stats.get("seconds") or 0.0,
        "in_tools": stats.get("tool_seconds") or 0.0,
        "tools": ", ".join(stats.get("tools") or ()),
        "confidence": _confidence(logprobs),
        "versions": _versions(segments),
        "fault": stats.get("fault") or "",
    }


def _confidence(logprobs: Sequence[float]) -> str:
    """Return the geometric mean of the tokens' probabilities."""
    return f"{math.exp(sum(logprobs) / len(logprobs)):.2f}" if logprobs else "–"


def _versions(segments: Sequence[Mapping[str, Any]]) -> str:
    """Return the first and the last policy that wrote a rollout, as one number if they are one."""
    versions = sorted({segment["policy_version"] for segment in segments})
    if len(versions) > 1:
        return f"{versions[0]}–{versions[-1]}"
    return "".join(map(str, versions))


def _side(site: Site, name: str) -> Side:
    """Return a group by the name that an address gives it."""
    parts = name.split(".")
    numbers = [parts[0], *parts[2:]]
    if len(parts) != 4 or not all(part.isdecimal() and len(part) < 10 for part in numbers):
        raise NotThere("The address names no group.")
    run = site.run(int(parts[0]))
    listed, found = site.group(run, Key(parts[1], int(parts[2]), int(parts[3])))
    view = group_view(found)
    return Side(run, listed, view, facts_of(view))


def _neighbours(left: Side, right: Side) -> list[str]:
    """Return the addresses of the comparisons before and after this one; "" if there is none.

    Of two evaluations they compare the next questions.
    """
    keys = (left.listed.key, right.listed.key)
    if {key.source for key in keys} != {"held-out"}:
        return ["", ""]
    of_left, of_right = _names(left), _names(right)
    common = [question for question in of_left if question in of_right]
    if left.listed.facts["question"] not in common:
        return ["", ""]
    place = common.index(left.listed.facts["question"])
    found = []
    for other in (place - 1, place + 1):
        if 0 <= other < len(common):
            question = common[other]
            found.append(comparison(of_left[question], of_right[question]))
        else:
            found.append("")
    return found


def _names(side: Side) -> dict[str, str]:
    """Return the names of the groups of the same evaluation, by question, in order."""
    groups = _evaluated(side.run, side.listed.key.step)
    return {one.facts["question"]: name_of(side.run, one.key) for one in groups}


def _evaluated(run: Watched, step: int) -> list[Listed]:
    """Return the held-out groups of one evaluation, in order."""
    return run.catalog.find(parse(f"source:held-out step:{step}"), most=HELD_OUT_MOST).groups


def _of_question(site: Site, question: str) -> list[tuple[Watched, Listed]]:
    """Return the groups of one question with their runs, the newest of each run first."""
    found = []
    for run in site.runs:
        found += [(run, one) for one in run.catalog.of_question(question)[:ELSEWHERE]]
    return found


def _shown(site: Site, side: Side) -> Markup:
    """Return the markup of one side, with the images of its run."""
    template = site.templates.get_template("side.html.jinja")
    return Markup(template.render(g=side.view, facts=side.facts, images=side.run.pictures))


def _common(site: Site) -> list[tuple[Listed, str, list[Listed | None]]]:
    """Return the questions that at least two runs kept.

    Each with one of its groups, the comparison of its first two, and the newest group of each run.
    """
    newest = [run.catalog.newest_of_each() for run in site.runs]
    counts: dict[str, int] = {}
    for of_run in newest:
        for question in of_run:
            counts[question] = counts.get(question, 0) + 1
    rows = []
    for question in sorted(name for name, count in counts.items() if count > 1)[:COMMON]:
        row = [of_run.get(question) for of_run in newest]
        kept = [(run, one) for run, one in zip(site.runs, row, strict=True) if one is not None]
        left, right = (name_of(run, one.key) for run, one in kept[:2])
        rows.append((kept[0][1], comparison(left, right), row))
    return rows
