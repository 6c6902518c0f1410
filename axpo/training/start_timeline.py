"""Show who was busy with what, and when, while a run started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from axpo.spans import Span, spans
from axpo.training.actors import Actors

SHOWN = 4
"""Processes of a kind that get a line each; of more, only the one that was ready last."""

Work: TypeAlias = Mapping[str, Sequence[Span]]
"""What each process did, by its name: "driver", "engine 0", "rank 1"."""


def work_of(actors: Actors, since: float) -> dict[str, list[Span]]:
    """Return what the driver, the engines and the ranks did since a start began."""
    engines = sorted(actors.pool.start_spans().items())
    ranks = enumerate(actors.learner.start_spans())
    return {
        "driver": [span for span in spans() if span.stop > since],
        **{f"engine {place}": own for place, own in engines},
        **{f"rank {index}": own for index, own in ranks},
    }


def lines(work: Work, since: float) -> list[str]:
    """Return the timeline of a start, a line for each process that matters.

    Args:
        work: what each process did.
        since: when the start began, in seconds since the epoch.
    """
    shown = _shown(work)
    width = max(map(len, shown))
    end = max(span.stop for own in work.values() for span in own)
    head = f"started in {end - since:.1f} s; what each process did, by the second:"
    return [head, *(f"   {name:<{width}}  {_line(own, since)}" for name, own in shown.items())]


def record(work: Work, since: float) -> list[dict[str, Any]]:
    """Return the timeline as plain data; `start` and `stop` are seconds since `since`."""
    return [
        {
            "who": name,
            "what": span.what,
            "start": round(span.start - since, 2),
            "stop": round(span.stop - since, 2),
        }
        for name, own in work.items()
        for span in own
    ]


def _line(own: Sequence[Span], since: float) -> str:
    return ", ".join(
        f"{span.what} {span.start - since:.1f}-{span.stop - since:.1f}" for span in own
    )


def _shown(work: Work) -> Work:
    """Return the processes that get a line; of many of a kind the one that was ready last."""
    kinds: dict[str, list[str]] = {}
    for name in work:
        kinds.setdefault(name.partition(" ")[0], []).append(name)
    shown: dict[str, Sequence[Span]] = {}
    for kind, names in kinds.items():
        if len(names) <= SHOWN:
            shown |= {name: work[name] for name in names}
            continue
        last = max(names, key=lambda name: max(span.stop for span in work[name]))
        shown[f"{last} (last of {len(names)} {kind}s)"] = work[last]
    return shown
