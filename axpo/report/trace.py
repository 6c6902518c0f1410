"""The rollouts of a step as a Chrome trace, for https://ui.perfetto.dev: any size, no thinning.

A worker is a process. Its rollouts lie in as many rows as ran at once, with their waits for tools
inside them; an arrow leads from the end of a source to each of its continuations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Bar = Mapping[str, Any]
"""One of `axpo.record.timeline.bars`."""
MICROSECONDS = 1e6
"""Of a second: the unit of the format."""


def trace(timeline: Sequence[Bar], step: int) -> str:
    """Return the trace of a step as JSON.

    Args:
        timeline: bars in order of their starts.
        step: what the trace is named after.
    """
    events: list[dict[str, Any]] = []
    places = _places(timeline)
    for bar, place in zip(timeline, places, strict=True):
        events += _slices(bar, place)
    events += _arrows(timeline, places)
    for worker in sorted({worker for worker, _ in places}):
        name = {"name": f"engine worker {worker}"}
        events.append({"ph": "M", "name": "process_name", "pid": worker, "args": name})
    return json.dumps({"traceEvents": events, "otherData": {"step": step}})


def _places(timeline: Sequence[Bar]) -> list[tuple[int, int]]:
    """Return the worker and the row of each bar: the first row that is free when it starts."""
    free_at: dict[int, list[float]] = {}
    places = []
    for bar in timeline:
        rows = free_at.setdefault(bar["worker"], [])
        free = (number for number, stop in enumerate(rows) if stop <= bar["start"])
        row = next(free, len(rows))
        if row == len(rows):
            rows.append(bar["stop"])
        else:
            rows[row] = bar["stop"]
        places.append((bar["worker"], row))
    return places


def _slices(bar: Bar, place: tuple[int, int]) -> list[dict[str, Any]]:
    """Return a rollout, and its waits for tools inside it."""
    about = {name: bar[name] for name in ("question", "rollout", "fork", "reward")}
    kind = "rollout" if bar["fork"] is None else "fork"
    name = f"{bar['question']} · {bar['rollout']}"
    if bar["fork"] is not None:
        name += f" · fork {bar['fork']}"
    slices = [_slice(name, kind, (bar["start"], bar["stop"]), place) | {"args": about}]
    for start, stop in bar["tools"]:
        slices.append(_slice("waits for a tool", "tool", (start, min(stop, bar["stop"])), place))
    return slices


def _slice(
    name: str, kind: str, span: tuple[float, float], place: tuple[int, int]
) -> dict[str, Any]:
    start, stop = span
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "ts": round(start * MICROSECONDS),
        "dur": max(round((stop - start) * MICROSECONDS), 1),
        "pid": place[0],
        "tid": place[1],
    }


def _arrows(timeline: Sequence[Bar], places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return an arrow from each source to its continuations."""
    sources = {}
    for bar, place in zip(timeline, places, strict=True):
        if bar["fork"] is None:
            sources[bar["question"], bar["rollout"]] = (bar["stop"], place)
    arrows: list[dict[str, Any]] = []
    for number, (bar, place) in enumerate(zip(timeline, places, strict=True)):
        source = sources.get((bar["question"], bar["rollout"]))
        if bar["fork"] is None or source is None:
            continue
        stop, from_place = source
        common = {"name": "fork", "cat": "fork", "id": number}
        # Its end must lie inside of the source's slice.
        at = round(stop * MICROSECONDS) - 1
        arrows.append({"ph": "s", "ts": at, "pid": from_place[0], "tid": from_place[1], **common})
        start = round(bar["start"] * MICROSECONDS)
        arrows.append(
            {"ph": "f", "bp": "e", "ts": start, "pid": place[0], "tid": place[1], **common}
        )
    return arrows
