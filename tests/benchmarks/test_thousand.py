"""What the simulation of many engines counts, and how an engine's handle reaches its host."""

from types import SimpleNamespace

import pytest

from benchmarks import bench_engine, bench_thousand
from benchmarks.bench_thousand import Cost, Finished
from benchmarks.hosted import HostedEngine
from benchmarks.waiting import Fit


def test_groups_under_way_are_their_rate_times_their_duration(monkeypatch):
    monkeypatch.setattr(bench_thousand, "GROUPS_AT_ONCE", 2)
    # Two a second, each of 10 s: 20 are under way. The first and the last two do not count.
    finished = [Finished(at, str(i), 0) for i, at in enumerate([0, 0, 5, 5.5, 6, 6.5, 7, 90, 99])]
    ten_seconds = SimpleNamespace(seconds=lambda question, batch: 10.0)
    assert bench_thousand._groups_under_way(finished, ten_seconds) == pytest.approx(20)


def test_the_spread_is_the_one_that_was_measured_before(monkeypatch):
    monkeypatch.setattr(bench_engine, "GROUP_SECONDS", [])
    assert bench_thousand._latency().sigma == bench_thousand.SPREAD
    monkeypatch.setattr(bench_engine, "GROUP_SECONDS", [10.0, 20.0, 40.0])
    assert bench_thousand._latency().sigma == pytest.approx(Fit.of([1.0, 2.0, 4.0]).sigma)


def test_a_trajectory_costs_its_share_of_what_was_spent_since():
    spent = Cost(3.0, 2.5, 9.0).a_trajectory(Cost(1.0, 0.5, 1.0), trajectories=4)
    assert spent == Cost(0.5, 0.5, 2.0)


def test_the_handle_of_an_engine_names_it_to_its_host():
    class Call:
        def __init__(self, **options):
            self.given = options

        def options(self, **options):
            return Call(**options)

        def remote(self, *arguments, **options):
            return arguments, options, self.given

    host = SimpleNamespace(call=Call(), __ray_call__="of the host")
    engine = HostedEngine(host, 7)
    assert engine.rollout.remote("q", n=2) == ((7, "rollout", "q"), {"n": 2}, {})
    asked = engine.rollout.options(num_returns=3)
    assert asked.remote() == ((7, "rollout"), {}, {"num_returns": 3})
    assert engine.__ray_call__ == "of the host"
