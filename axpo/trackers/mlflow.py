"""MLflow: a tracking server, or a database in the run directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from axpo.trackers.tracker import (
    History,
    Numbers,
    Session,
    Sink,
    Table,
    Tracker,
    finite,
    flat,
    folder,
    trackers,
)

NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow takes in no metric's name."""
LONGEST = 6000
"""Characters of a parameter."""
METRICS, PARAMETERS = 1000, 100
"""Most of each that one request may have."""

T = TypeVar("T")


@trackers.register("mlflow")
class MLflow(Tracker):
    """MLflow: a tracking server, or RUN/mlflow/mlflow.db: `mlflow ui --backend-store-uri ...`."""

    package: ClassVar[str] = "mlflow"

    experiment: str = "axpo"
    uri: str | None = Field(
        None, description="None: what MLFLOW_TRACKING_URI says, else a database in the run"
    )
    tags: dict[str, str] = Field(default_factory=dict)

    def open(self, session: Session) -> Sink:
        """Begin the run, or go on with it.

        MLflow takes no number back. If a step ran twice it has both, and the later one counts.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        path = folder(session, "mlflow")
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None if uri else str(path / "artifacts")
        client = MlflowClient(tracking_uri=uri or f"sqlite:///{path / 'mlflow.db'}")
        if session.id is None:
            sink = _Run(client, self._begin(client, session.name, artifacts))
            sink.set_recipe(session.recipe)
            self.refill(sink, session.history)
            return sink
        client.update_run(session.id, status="RUNNING")
        sink = _Run(client, session.id)
        sink.complete(session.history)
        return sink

    def _begin(self, client: Any, name: str, artifacts: str | None) -> str:
        """Begin a run of the experiment and return its id."""
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            number = client.create_experiment(self.experiment, artifacts)
        else:
            number = experiment.experiment_id
        return str(client.create_run(number, tags=self.tags, run_name=name).info.run_id)


class _Run:
    def __init__(self, client: Any, run: str) -> None:
        self.id = run
        self._client = client
        self._step = 0

    def set_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe as parameters."""
        from mlflow.entities import Param

        rows = [
            Param(NOT_IN_NAMES.sub("_", name), str(value)[:LONGEST])
            for name, value in flat(recipe).items()
        ]
        for part in _parts(rows, PARAMETERS):
            self._client.log_batch(self.id, params=part)

    def complete(self, history: History) -> None:
        """Send what an earlier process wrote into the run directory and MLflow has not taken."""
        taken: dict[str, dict[int, float]] = {}
        for step, numbers in history.numbers():
            for name in numbers:
                if name not in taken:
                    taken[name] = self._taken(name)
            missing = {k: v for k, v in numbers.items() if taken[k].get(step) != v}
            self.log(step, missing)

    def _taken(self, name: str) -> dict[int, float]:
        """Return the latest value of each step."""
        found = self._client.get_metric_history(self.id, NOT_IN_NAMES.sub("_", name))
        return {row.step: row.value for row in sorted(found, key=lambda row: row.timestamp)}

    def log(self, step: int, numbers: Numbers) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [
            Metric(NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in numbers.items()
        ]
        for part in _parts(rows, METRICS):
            self._client.log_batch(self.id, metrics=part)
        self._step = step

    def table(self, step: int, table: Table) -> None:
        columns = {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns)}
        # One file a step: MLflow would read a file again to add to it.
        self._client.log_table(self.id, columns, f"trajectories/step_{step:04d}.json")

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            numbers = {f"summary/{name}": value for name, value in finite(summary).items()}
            self.log(self._step, numbers)
        self._client.set_terminated(self.id, "FINISHED" if summary is not None else "KILLED")


def _parts(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
