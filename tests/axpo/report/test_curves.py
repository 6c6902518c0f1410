"""Which lines the charts of the report have."""

from __future__ import annotations

from axpo.report.curves import CHARTS, charts, each, overlaid_charts, tool_failures


def test_metrics_of_one_family_get_a_line_each():
    metrics = [{"step": 1, "use/zoom": 0.5}, {"step": 2, "use/zoom": 0.25, "use/search": 1.0}]
    first, second = each("use/")(metrics)
    assert (first.label, first.points, first.color) == ("zoom", [(1, 0.5), (2, 0.25)], 1)
    assert (second.label, second.points, second.color) == ("search", [(2, 1.0)], 2)
    by_name = each("use/", by_name=True)(metrics)
    assert [series.label for series in by_name] == ["search", "zoom"]


def test_a_ninth_line_has_the_first_colour_again():
    row = {"step": 1} | {f"engine/{i}/idle_share": 0.0 for i in range(9)}
    lines = each("engine/", "/idle_share", "engine {} idle")([row])
    assert [(line.label, line.color) for line in lines[-2:]] == [
        ("engine 7 idle", 8),
        ("engine 8 idle", 1),
    ]


def test_a_tools_failures_are_a_share_of_its_calls():
    metrics = [
        {"step": 1, "tool/zoom/calls": 8.0, "tool/zoom/infrastructure": 1.0},
        {"step": 2, "tool/zoom/calls": 0.0},
        {"step": 3, "tool/zoom/calls": 4.0, "tool/zoom/deadline": 2.0, "tool/zoom/ok": 2.0},
    ]
    (failures,) = tool_failures(metrics)
    assert failures.points == [(1, 1 / 8), (3, 1 / 2)]


def test_a_chart_is_drawn_when_one_of_its_metrics_is_there():
    assert charts([{"step": 0}]) == []
    (chart,) = charts([{"step": 1, "kl": None}, {"step": 2, "kl": 0.5}])
    assert "<h3>KL to the reference</h3>" in chart


def test_no_two_charts_have_one_title():
    titles = [chart.title for chart in CHARTS]
    assert len(set(titles)) == len(titles)


def test_runs_lie_over_each_other_in_colours_and_columns_become_totals():
    first = [{"step": 1, "pass1": 0.5, "time/rollout": 2.0, "time/learn": 1.0}]
    second = [{"step": 1, "eval/pass1": 0.25}, {"step": 2, "time/learn": 4.0}]
    rates, times = overlaid_charts([("a", first), ("<b>", second)])
    assert 'fill="var(--s1)"' in rates
    assert 'stroke="var(--s2)"' in rates
    assert "&lt;b&gt;: held-out <b>25%</b>" in rates
    assert "</i>a <b>3</b>" in times
    assert "</i>&lt;b&gt; <b>4</b>" in times
