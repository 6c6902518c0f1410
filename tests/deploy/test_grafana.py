"""The dashboard and the alarms ask for metrics that are exported."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
import yaml

from axpo.training.gauges import COUNTERS, GAUGES, Gauges

DASHBOARD = Path("deploy/grafana/axpo.json")
ALERTS = Path("deploy/grafana/alerts.yaml")
METRIC = re.compile(r"\bray_\w+")
ROW = {
    "step": 7,
    "tokens_per_second": 812.5,
    "time/rollout": 3.0,
    "time/sync": 0.25,
    "engine/0/generated_per_s": 400.0,
    "engine/0/idle_share": 0.5,
    "engine/0/queue_depth": 2.0,
    "engine/0/slots": 8.0,
    "workers_lost": 1.0,
    "tool/image_zoom_in/ok": 12.0,
    "tool/image_zoom_in/deadline": 1.0,
    "tool/image_zoom_in/p50_s": 0.01,
    "groups_dropped": 2.0,
    "kl": None,
}


def asked_for() -> set[str]:
    """Return the metrics that the dashboard and the alarms name."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        expressions += [rule["expr"] for rule in group["rules"]]
    return {name for expression in expressions for name in METRIC.findall(expression)}


def scraped() -> dict[str, str]:
    """Return what this node serves for Prometheus, by metric and labels."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        name, _, rest = line.partition("{")
        if name.startswith("ray_"):
            labels, _, value = rest.rpartition("} ")
            own = re.findall(r'\b(run|phase|engine|tool|outcome)="([^"]*)"', labels)
            found[name + json.dumps(sorted(own))] = value
    return found


def exported(wanted: set[str]) -> dict[str, str]:
    """Return what is served as soon as it has the wanted metrics; wait half a minute for it."""
    deadline = time.monotonic() + 30
    while True:
        found = scraped()
        missing = {name for name in wanted if not any(key.startswith(f"{name}[") for key in found)}
        if not missing:
            return found
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)


@pytest.fixture
def session():
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield
    ray.shutdown()


@pytest.mark.engine
def test_a_node_serves_every_metric_that_dashboard_and_alarms_ask_for(session):
    ours = {name for name in asked_for() if name.startswith("ray_axpo_")}
    assert ours == {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
    with Gauges("my-run") as gauges:
        gauges.step(7, ROW)
        gauges.log("worker lost", worker=3, why="killed", failures=2)
        found = exported(ours | {"ray_node_mem_used"})
    run = ["run", "my-run"]

    def value(name, *labels):
        return float(found[name + json.dumps(sorted([run, *labels]))])

    assert value("ray_axpo_step") == 7
    assert 0 <= value("ray_axpo_seconds_since_step") < 30
    assert value("ray_axpo_tokens_per_second") == 812.5
    assert value("ray_axpo_phase_seconds", ["phase", "sync"]) == 0.25
    assert value("ray_axpo_engine_idle_share", ["engine", "0"]) == 0.5
    assert value("ray_axpo_workers_lost") == 2  # told before the step ended
    zoom = ["tool", "image_zoom_in"]
    assert value("ray_axpo_tool_calls_total", zoom, ["outcome", "ok"]) == 12
    assert value("ray_axpo_tool_calls_total", zoom, ["outcome", "deadline"]) == 1
    assert value("ray_axpo_groups_dropped_total") == 2


def test_the_other_metrics_are_ray_s_own():
    reporter = pytest.importorskip("ray.dashboard.modules.reporter.reporter_agent")
    theirs = {name for name in asked_for() if not name.startswith("ray_axpo_")}
    assert theirs == {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_mem_used"}
    assert {name.removeprefix("ray_") for name in theirs} <= set(reporter.METRICS_GAUGES)


def test_every_panel_and_alarm_says_what_it_is():
    dashboard = json.loads(DASHBOARD.read_text())
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        if "ray_axpo_" in panel["targets"][0]["expr"]:
            assert all('run=~"$run"' in target["expr"] for target in panel["targets"])
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        assert all(rule["annotations"]["summary"] for rule in group["rules"])
