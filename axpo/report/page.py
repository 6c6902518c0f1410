"""One self-contained page about a run: what changed, the curves, and rollouts a person can read.

Everything is inline (SVG, CSS, a little JavaScript, images as data URIs): the file can be mailed, and opens without a network.
A run that was killed renders with what it wrote.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axpo.record.run import RunDirectory
from axpo.record.summary import before_after, duration, label, read_summary
from axpo.report.charts import Series, line_chart, stacked_chart
from axpo.report.rollout_view import SURE, Record, group_view
from axpo.report.timeline import picture

GROUPS_SHOWN = 6
IMAGE_SIDE = 640
"""Longer sides are scaled down for the page, pixels."""
PNG_SIDE = 160
"""Images up to this side are embedded exactly: crops of small things are what a reader looks at."""


@dataclass
class Images:
    """The page's images, each embedded once however often it is shown."""

    folder: Path
    used: dict[str, tuple[str, int, int]] = field(
        default_factory=dict
    )  # name -> data URI, width, height

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) in pixels as embedded; (0, 0) for a file that is missing or unreadable."""
        if name not in self.used:
            self.used[name] = self._embed(self.folder / name)
        return self.used[name][1:]

    def _embed(self, file: Path) -> tuple[str, int, int]:
        from PIL import Image

        try:
            with Image.open(file) as source:
                image = source.convert("RGB")
        except OSError:
            return "", 0, 0
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        small = max(image.size) <= PNG_SIDE
        data = io.BytesIO()
        image.save(data, "PNG" if small else "JPEG", quality=85)
        kind = "png" if small else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", *image.size


def render(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path. Raises AxpoError where there is no run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run = RunDirectory.open(run_dir)
    recipe, metrics, summary = run.recipe(), run.metrics(), read_summary(run.path)
    images = Images(run.images.folder)
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    html = page.get_template("page.html.jinja").render(
        name=recipe.get("name") or run.path.resolve().name,
        run=run.path.resolve().name,
        algorithm=str(recipe.get("algorithm", "")).upper(),
        facts=_facts(metrics, summary),
        recipe=(run.path / "recipe.yaml").read_text(encoding="utf-8"),
        tiles=_tiles(metrics, summary),
        charts=_charts(metrics),
        timeline=_timeline(run, metrics),
        groups=[group_view(record) for record in _choose(run)],
        images=images,
        SURE=SURE,
    )
    out = run.path / "report.html"
    out.write_text(html, encoding="utf-8")
    return out


def _facts(metrics: Sequence[Record], summary: Record | None) -> list[str]:
    if summary:
        return [
            f"{summary['steps']} steps",
            duration(summary["seconds"]),
            f"{summary['tokens']:,} tokens generated",
        ]
    return [
        f"stopped or still running at step {metrics[-1]['step']}"
        if metrics
        else "no step finished yet"
    ]


def _timeline(run: RunDirectory, metrics: Sequence[Record]) -> str:
    """The rollouts of the last step that has a timeline."""
    for row in reversed(metrics):
        if bars := run.timeline(row["step"]):
            return picture(bars, row["step"])
    return ""


def _tiles(metrics: Sequence[Record], summary: Record | None) -> list[dict[str, Any]]:
    """Held-out rates before and after; of a run without a summary, its first and last evaluations."""
    pairs = before_after(summary or {})
    if not pairs:
        values = {
            name: [y for _, y in _points(metrics, f"eval/{name}")]
            for name in ("pass1", "pass4", "tool_use", "tool_all_wrong_rate")
        }
        pairs = [(label(name), v[0], v[-1]) for name, v in values.items() if v]
    tiles = []
    for name, start, end in pairs:
        if start is None:
            tiles.append(
                {
                    "name": name,
                    "start": "–",
                    "end": f"{end:.1%}",
                    "change": "start not measured",
                    "tone": "",
                }
            )
            continue
        change = 100 * (end - start)
        wanted = 1 if name.startswith("Pass") else -1 if "wrong" in name else 0
        tone = "" if abs(change) < 0.05 or not wanted else "good" if change * wanted > 0 else "bad"
        text = f"{change:+.1f} points".replace("-", "−")
        tiles.append(
            {
                "name": name,
                "start": f"{start:.1%}",
                "end": f"{end:.1%}",
                "change": text,
                "tone": tone,
            }
        )
    return tiles


def _points(metrics: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in metrics if row.get(name) is not None]


def _failures(metrics: Sequence[Record], tool: str) -> list[tuple[float, float]]:
    return [
        (
            row["step"],
            sum(row.get(f"tool/{tool}/{status}", 0) for status in ("infrastructure", "deadline"))
            / calls,
        )
        for row in metrics
        if (calls := row.get(f"tool/{tool}/calls"))
    ]


def _charts(metrics: Sequence[Record]) -> list[str]:
    def series(name: str, text: str, color: int, measured: bool = False) -> Series:
        return Series(text, _points(metrics, name), color, measured)

    tools = dict.fromkeys(
        name.split("/")[1] for row in metrics for name in row if name.startswith("tool/")
    )
    used = sorted({name for row in metrics for name in row if name.startswith("use/")})
    idle = {
        name.split("/")[1]: name
        for row in metrics
        for name in row
        if name.startswith("engine/") and name.endswith("/idle_share")
    }
    ages = sorted({name for row in metrics for name in row if name.startswith("staleness/")})
    phases = dict.fromkeys(name for row in metrics for name in row if name.startswith("time/"))
    charts = [
        line_chart(
            "Pass@1",
            "mean reward of a rollout",
            [
                series("pass1", "training", 1),
                series("eval/pass1", "held-out", 2, True),
                series("eval/pass4", "held-out Pass@4", 5, True),
            ],
            percent=True,
        ),
        line_chart(
            "Tool use",
            "share of rollouts with a tool call",
            [series("tool_use_rate", "training", 1), series("eval/tool_use", "held-out", 2, True)],
            percent=True,
        ),
        line_chart(
            "Each tool",
            "share of rollouts in which it ran",
            [series(name, name.removeprefix("use/"), 1 + i % 8) for i, name in enumerate(used)],
            percent=True,
        ),
        line_chart(
            "All-wrong subgroups",
            "share of questions where the whole subgroup is wrong",
            [
                series("tool_all_wrong_rate", "with tool", 6),
                series("no_tool_all_wrong_rate", "without tool", 3),
            ],
            percent=True,
        ),
        line_chart(
            "Right, by choice",
            "mean reward of rollouts with and without a tool call",
            [
                series("pass1_given_tool", "with tool", 1),
                series("pass1_given_no_tool", "without tool", 3),
            ],
            percent=True,
        ),
        line_chart(
            "Recovery",
            "share of resampled prefixes that some fork made right",
            [
                series("recovery_rate", "recovered", 2),
                series("trigger_rate", "questions that trigger", 5),
            ],
            percent=True,
        ),
        line_chart(
            "Prefix cache of forks",
            "share of a fork's prompt that the engine had cached",
            [series("fork_cached_share", "mean", 1), series("fork_cached_share_min", "lowest", 3)],
            percent=True,
        ),
        line_chart(
            "Waiting",
            "share of the time that engines had no request, and that rollouts waited for tools",
            [
                *[
                    Series(f"engine {i} idle", _points(metrics, name), 1 + n % 8)
                    for n, (i, name) in enumerate(idle.items())
                ],
                series("tool_wait_share", "rollouts in tools", 6),
            ],
            percent=True,
        ),
        stacked_chart(
            "Staleness",
            "groups trained on, by updates since the policy that began them",
            [
                series(name, name.removeprefix("staleness/"), 1 + i % 8)
                for i, name in enumerate(ages)
            ],
            unit="",
        ),
        line_chart("KL to the reference", "k3 estimate, nats a token", [series("kl", "KL", 5)]),
        line_chart(
            "Logprob gap",
            "mean |learner - engine| on the same tokens, nats",
            [series("logprob_gap_mean", "gap", 8)],
        ),
        line_chart("Gradient norm", "before clipping", [series("grad_norm", "norm", 4)]),
        line_chart(
            "Length", "policy tokens a rollout", [series("policy_tokens_per_rollout", "tokens", 7)]
        ),
        line_chart(
            "Throughput", "tokens generated a second", [series("tokens_per_second", "tokens/s", 1)]
        ),
        line_chart(
            "Tool latency",
            "seconds, 99th percentile of a step's calls",
            [series(f"tool/{tool}/p99_s", tool, 1 + i % 8) for i, tool in enumerate(tools)],
        ),
        line_chart(
            "Tool failures",
            "share of a step's calls that infrastructure or the deadline ended",
            [
                Series(tool, _failures(metrics, tool), 1 + i % 8, False)
                for i, tool in enumerate(tools)
            ],
            percent=True,
        ),
        stacked_chart(
            "Time by phase",
            "seconds a step",
            [series(name, name.removeprefix("time/"), 1 + i % 8) for i, name in enumerate(phases)],
        ),
    ]
    return [chart for chart in charts if chart]


def _choose(run: RunDirectory) -> list[Record]:
    """Groups of evenly spaced steps, first and last among them; those that a fork recovered come first."""
    steps = run.group_steps()
    if not steps:
        return []
    count = min(GROUPS_SHOWN, len(steps))
    spaced = sorted({steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)})

    def interest(record: Record) -> int:
        forks = [t for r in record["resamples"] for t in r["continuations"]]
        return 2 * any((t["reward"] or 0) > 0 for t in forks) + bool(forks)

    chosen: list[Record] = []
    for step in spaced:
        chosen += sorted(run.groups(step), key=interest, reverse=True)[
            : math.ceil(GROUPS_SHOWN / count)
        ]
    return sorted(chosen[:GROUPS_SHOWN], key=interest, reverse=True)
