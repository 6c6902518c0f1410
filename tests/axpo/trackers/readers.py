"""Read back what each tracker wrote offline: numbers by step and name."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Numbers = dict[int, dict[str, float]]
BLOCK, HEADER = 32768, 7
"""Of a log in LevelDB's format, which W&B and SwanLab write."""
WHOLE, LAST = 1, 4


def tensorboard(run: Path) -> Numbers:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found: Numbers = defaultdict(dict)
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found[event.step][name] = event.value
    return dict(found)


def wandb(run: Path) -> Numbers:
    from wandb.proto import wandb_internal_pb2

    found: Numbers = {}
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {tuple(i.nested_key) or (i.key,): i.value_json for i in record.history.item}
            values = {"/".join(key): json.loads(text) for key, text in items.items()}
            step = values.pop("_step")
            assert step not in found
            found[step] = {
                name: value
                for name, value in values.items()
                if not name.startswith(("_", "trajectories"))
            }
    return found


def swanlab(run: Path) -> Numbers:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    found: Numbers = defaultdict(dict)
    (file,) = run.glob("swanlab/run-*/*.swanlab")
    for data in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("scalar") and not record.scalar.key.startswith("__swanlab__"):
            step = found[record.scalar.step]
            assert record.scalar.key not in step
            step[record.scalar.key] = record.scalar.value.number
    return dict(found)


def trackio(run: Path) -> Numbers:
    from trackio.sqlite_storage import SQLiteStorage

    found: Numbers = defaultdict(dict)
    for row in SQLiteStorage.get_logs("axpo", run.name):
        step = row.pop("step")
        numbers = {name: value for name, value in row.items() if _is_metric(name, value)}
        assert not found[step].keys() & numbers.keys()
        found[step] |= numbers
    return dict(found)


def mlflow(run: Path) -> Numbers:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    number = json.loads((run / "trackers.json").read_text())["mlflow"]
    found: Numbers = defaultdict(dict)
    for name in client.get_run(number).data.metrics:
        if not name.startswith("summary/"):
            rows = client.get_metric_history(number, name)
            for row in sorted(rows, key=lambda row: row.timestamp):
                found[row.step][name] = row.value
    return dict(found)


def _is_metric(name: str, value: object) -> bool:
    return isinstance(value, float | int) and not name.startswith(("summary/", "_"))


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log, without checking their sums."""
    at, record = HEADER, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        record += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            yield record
            record = b""
