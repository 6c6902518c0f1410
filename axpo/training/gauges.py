"""Export what an operator alarms on, through Ray's own metrics, for Prometheus.

Every node of a Ray cluster serves them at its port for metrics, with `ray_` in front of the names
and the run's name as label `run`. The dashboard is `deploy/grafana/axpo.json`, the alarms are
`deploy/grafana/alerts.yaml`. GPUs, memory and disks of the nodes are metrics of Ray itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge

BEAT_S = 10.0
"""Ray forgets a gauge that was not set for about 25 seconds (measured with Ray 2.60)."""
OUTCOMES = ("ok", "tool_error", "infrastructure", "deadline")
"""Of a tool call, as metrics of a step name them."""


class Meaning(NamedTuple):
    """What a metric says, and by what it is told apart beside the run."""

    description: str
    labels: tuple[str, ...] = ()


GAUGES = {
    "axpo_step": Meaning("steps that are done"),
    "axpo_seconds_since_step": Meaning("seconds since the last step ended, or since the start"),
    "axpo_tokens_per_second": Meaning("generated tokens of the last step, by its time"),
    "axpo_phase_seconds": Meaning("seconds of each phase of the last step", ("phase",)),
    "axpo_engine_generated_per_second": Meaning("tokens an engine generated", ("engine",)),
    "axpo_engine_idle_share": Meaning("share of an engine's time without a request", ("engine",)),
    "axpo_engine_queue_depth": Meaning("rollouts that wait for a slot of an engine", ("engine",)),
    "axpo_workers_lost": Meaning("rollout workers lost since the start"),
}
COUNTERS = {
    "axpo_tool_calls": Meaning("calls of a tool, by how they ended", ("tool", "outcome")),
    "axpo_groups_dropped": Meaning("groups that were not trained on, for a fault of a machine"),
}
ENGINE = {
    "generated_per_s": "axpo_engine_generated_per_second",
    "idle_share": "axpo_engine_idle_share",
    "queue_depth": "axpo_engine_queue_depth",
}
"""Numbers of an engine (`RolloutPool.take_stats`), and what they are exported as."""

Labels = tuple[tuple[str, str], ...]


class Gauges:
    """Set the metrics of one run after each step, and keep them alive in between.

    Use it as a context manager, inside of the Ray session.
    """

    def __init__(self, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._gauges = {
            name: Gauge(name, meaning.description, ("run", *meaning.labels))
            for name, meaning in GAUGES.items()
        }
        self._counters = {
            name: Counter(name, meaning.description, ("run", *meaning.labels))
            for name, meaning in COUNTERS.items()
        }
        self._values: dict[tuple[str, Labels], float] = {}
        self._last = clock()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="gauges", daemon=True)

    def __enter__(self) -> Gauges:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # Ray must not be called once its session has ended.
        self._ended.set()
        self._thread.join(BEAT_S)

    def step(self, done: int, numbers: Mapping[str, Any]) -> None:
        """Take a step's metrics.

        Args:
            done: the step, counted from 1.
            numbers: a row of `metrics.jsonl`.
        """
        known = {name: value for name, value in numbers.items() if value is not None}
        with self._lock:
            self._last = self._clock()
            # An engine that is gone must not look alive, so all values are new.
            self._values = {("axpo_step", ()): float(done), **_of_step(known)}
        self._count(known)
        self._set()

    def log(self, event: str, **fields: Any) -> None:
        """Take an event of the workers: a loss is told before the step ends."""
        if event == "worker lost":
            with self._lock:
                self._values["axpo_workers_lost", ()] = float(fields["failures"])
            self._set()

    def _count(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            family, _, rest = name.partition("/")
            tool, _, outcome = rest.rpartition("/")
            if family == "tool" and outcome in OUTCOMES and value > 0:
                labels = {"run": self._run, "tool": tool, "outcome": outcome}
                self._counters["axpo_tool_calls"].inc(value, labels)
        if numbers.get("groups_dropped", 0) > 0:
            self._counters["axpo_groups_dropped"].inc(numbers["groups_dropped"], {"run": self._run})

    def _beat(self) -> None:
        self._set()
        while not self._ended.wait(BEAT_S):
            self._set()

    def _set(self) -> None:
        with self._lock:
            seconds = self._clock() - self._last
            values = {("axpo_seconds_since_step", ()): seconds, **self._values}
        for (name, labels), value in values.items():
            self._gauges[name].set(value, {"run": self._run, **dict(labels)})


def _of_step(numbers: Mapping[str, float]) -> dict[tuple[str, Labels], float]:
    """Return the gauges that a step's metrics hold, by name and labels."""
    found: dict[tuple[str, Labels], float] = {}
    for name, value in numbers.items():
        family, _, rest = name.partition("/")
        if family == "time":
            found["axpo_phase_seconds", (("phase", rest),)] = value
        elif family == "engine":
            engine, _, number = rest.partition("/")
            if number in ENGINE:
                found[ENGINE[number], (("engine", engine),)] = value
    if "tokens_per_second" in numbers:
        found["axpo_tokens_per_second", ()] = numbers["tokens_per_second"]
    if "workers_lost" in numbers:
        found["axpo_workers_lost", ()] = numbers["workers_lost"]
    return found
