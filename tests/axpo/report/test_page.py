"""The report of a run, as a page and chart by chart."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from axpo.errors import AxpoError
from axpo.record.records import ImageFolder, group_to_json
from axpo.record.run import RunDirectory
from axpo.record.summary import write_summary
from axpo.report.charts import (
    Series,
    line_chart,
    number,
    smoothed,
    stacked_chart,
    thinned,
    ticks,
)
from axpo.report.page import Choice, render
from axpo.report.rollout_view import group_view
from learner.config import LearnerConfig
from learner.credit import credit
from tests.axpo.helpers import (
    TOKENS,
    decode,
    direct,
    encode,
    group,
    policy,
    resample,
    zooming,
)
from tests.axpo.record.helpers import NUMBERS


class Page(HTMLParser):
    """The tags of a page. A closing tag without its opening one fails."""

    VOID = ("meta", "path", "rect", "circle", "use", "image", "br", "link", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def having(self, tag: str, class_: str = "") -> list[dict[str, str | None]]:
        """Return the attributes of all such tags."""
        found = [attributes for name, attributes in self.tags if name == tag]
        if not class_:
            return found
        return [a for a in found if class_ in (a.get("class") or "").split()]


def zoom_call(arguments: str) -> str:
    return '<tool_call>{"name": "image_zoom_in", "arguments": ' + arguments + "}</tool_call>"


def write_run(root, *, finish: bool = True, hostile: str = "7"):
    source = zooming(0, 0.0, box=(0, 0, 500, 500))
    forks = resample(source, [((250, 0, 500, 1000), 1.0, 80), ((0, 500, 100, 1200), 0.0, 80)])
    said = policy(f"look</think>{hostile}<|im_end|>")
    rollouts = [
        source,
        direct(1, 1.0),
        type(source)("q", 2, source.prompt_ids, (said,), source.end, hostile, 0.0),
    ]
    groups = [group(rollouts, [forks])]
    with RunDirectory.create("a", {"name": "toy", "algorithm": "axpo"}, root) as run:
        run.log_metrics(0, {"eval/pass1": 0.5})
        for step in range(1, 13):
            seconds = {"time/rollout": 2.0, "time/update": 1.0}
            run.log_metrics(step, {"pass1": 0.5 + step / 100, "kl": float("nan")} | seconds)
            run.save_groups(step, groups, decode, credit(groups, TOKENS))
        run.log_metrics(12, {"eval/pass1": 0.625})
        if finish:
            write_summary(run.path, NUMBERS)
    return run.path


def test_the_page_is_whole_and_needs_no_network(tmp_path):
    path = render(write_run(tmp_path))
    html = path.read_text()
    assert path == tmp_path / "a" / "report.html"
    assert Page(html).open == []
    assert re.findall(r'(?:src|href)="(?!#|data:)|url\(|@import|https?://', html) == []


def test_results_curves_and_rollouts_are_there(tmp_path):
    html = render(write_run(tmp_path)).read_text()
    page = Page(html)
    assert "<h1>toy</h1>" in html
    assert "20 steps" in html
    assert "7 min 5 s" in html
    assert re.findall(r'class="start">([\d.%]+) →</span> ([\d.%]+)<', html) == [
        ("50.0%", "75.0%"),
        ("70.0%", "90.0%"),
        ("30.0%", "60.0%"),
    ]
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["Pass@1", "Time by phase"]  # KL was never finite
    assert len(page.having("details", "group")) == 6
    assert len(page.having("image")) == 2  # the question's image and the crop, once each


def test_forks_stand_beside_their_source_with_credit(tmp_path):
    html = render(write_run(tmp_path)).read_text()
    begin, tree = html.index('<details class="group"'), html.index('class="tree"')
    first = html[begin : html.index("</section>", tree)]
    assert re.findall(r'<div class="head"><strong>(.*?)</strong>', first) == [
        "Rollout 1",
        "The source&#39;s own",
        "Fork 1",
        "Fork 2",
    ]
    # Rewards (1, 1, 0) with r_prefix; (1, 0).
    assert re.findall(r"A&nbsp;([+−.\d]+)", first) == ["+0.71", "+1.00", "−1.00"]
    assert "recovered" in first
    assert "not trained" in first
    assert 'title="probability 0.50"' in first


@pytest.mark.parametrize(
    ("settings", "cut", "own_trained", "kept"),
    [
        ({}, None, False, True),
        ({"joined": True}, None, True, True),
        ({"prefix": False}, None, False, True),
        ({}, 0, True, False),
    ],
)
def test_a_source_whose_own_continuation_trains_is_told_apart(
    tmp_path, settings, cut, own_trained, kept
):
    source = zooming(0, 0.0)
    forks = resample(source, [((0, 0, 9, 9), 1.0, 80), ((0, 0, 5, 5), 0.0, 80)])
    forks = forks if cut is None else replace(forks, prefix_tokens=cut)
    groups = [group([source, direct(1, 1.0)], [forks])]
    items = credit(groups, TOKENS, LearnerConfig(credit=settings))
    record = group_to_json(groups[0], 1, decode, ImageFolder(tmp_path), items)
    (tree,) = group_view(record).trees
    assert (tree.own_trained, bool(tree.prefix), tree.recovered) == (own_trained, kept, True)


def test_zoom_boxes_lie_on_the_question_image_in_its_pixels(tmp_path):
    page = Page(render(write_run(tmp_path)).read_text())
    boxes = [
        (a["x"], a["y"], a["width"], a["height"], set((a["class"] or "").split()))
        for a in page.having("rect")
        if "data-key" in a
    ]
    assert boxes[:3] == [  # the image is 40 x 20 pixels; the third box reached below it
        ("0.0", "0.0", "20.0", "10.0", {"wrong"}),
        ("10.0", "0.0", "10.0", "20.0", {"right", "fork"}),
        ("0.0", "10.0", "4.0", "10.0", {"wrong", "fork"}),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        zoom_call('{"bbox_2d": [NaN, 1, 2, 3]}'),
        zoom_call('{"bbox_2d": [1, 2, 3]}'),
        zoom_call('{"bbox_2d": [0, 0, 9, 9], "img_idx": 1e999}'),
        "<tool_call>" + "[" * 3000 + "</tool_call>",
        "<tool_call>",
    ],
)
def test_what_a_policy_writes_cannot_break_the_page(tmp_path, text):
    html = render(write_run(tmp_path, hostile=text)).read_text()
    page = Page(html)
    assert page.open == []
    assert len(page.having("script")) == 1
    assert "nan" not in "".join(a["x"] or "" for a in page.having("rect")).lower()


def test_a_killed_run_shows_what_it_wrote(tmp_path):
    path = write_run(tmp_path, finish=False)
    images = sorted((path / "trajectories" / "images").iterdir())
    images[0].unlink()
    html = render(path).read_text()
    assert "stopped or still running at step 12" in html
    assert re.findall(r'class="start">([\d.%]+) →</span> ([\d.%]+)<', html) == [("50.0%", "62.5%")]
    assert "is missing" in html
    assert Page(html).open == []


def test_each_of_several_tools_is_drawn(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        for step in (1, 2):
            run.log_metrics(step, {"use/python": 0.25 * step, "use/search": 0.5})
    html = render(tmp_path / "a").read_text()
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["Each tool"]
    assert "python" in html
    assert "search" in html


def test_a_run_without_a_step_renders(tmp_path):
    RunDirectory.create("a", {"seed": 1}, tmp_path).close()
    assert "no step finished yet" in render(tmp_path / "a").read_text()


def test_no_run_no_report(tmp_path):
    with pytest.raises(AxpoError, match="not a run directory"):
        render(tmp_path)


def shown_steps(html: str) -> list[int]:
    return [int(step) for step in re.findall(r'<span class="dim">Step (\d+)</span>', html)]


def test_a_reader_chooses_which_groups_the_page_shows(tmp_path):
    path = write_run(tmp_path)
    html = render(path, Choice(groups=12)).read_text()
    assert sorted(shown_steps(html)) == list(range(1, 13))
    assert shown_steps(render(path, Choice(groups=0)).read_text()) == []
    words = "is:recovered step:3..8"
    chosen = Choice(words, groups=4, order="oldest", cache=tmp_path / "cache")
    html = render(path, chosen).read_text()
    assert shown_steps(html) == [3, 4, 5, 6]
    assert "4 of the 6 groups that fit: is:recovered step:3..8 (oldest first)." in html
    assert "No group fits" in render(path, replace(chosen, words="step:99")).read_text()
    with pytest.raises(AxpoError, match="is:'x': expected one of"):
        render(path, replace(chosen, words="is:x"))


def test_a_long_line_is_thinned_without_losing_an_outlier():
    points = [(step, 0.5) for step in range(5000)]
    points[1234] = (1234, 9.0)
    points[4000] = (4000, -9.0)
    kept = thinned(points)
    assert len(kept) <= 410
    assert (kept[0], kept[-1]) == ((0, 0.5), (4999, 0.5))
    assert (1234, 9.0) in kept
    assert (4000, -9.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:400]) == points[:400]


def test_a_chart_places_its_points():
    chart = line_chart("T", "n", [Series("a", [(0, 0.0), (10, 1.0)], 1)], percent=True)
    assert '<path d="M46.0 178.0L428.0 10.0" stroke="var(--s1)" class="line"/>' in chart
    assert 'class="raw"' not in chart
    assert line_chart("T", "n", [Series("a", [], 1)]) == ""


def test_columns_stack_and_share_the_width():
    lower, upper = Series("a", [(1, 1.0), (2, 2.0)], 1), Series("b", [(2, 2.0)], 2)
    chart = stacked_chart("T", "n", [lower, upper])
    rect = r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"'
    bars = [tuple(map(float, found)) for found in re.findall(rect, chart)]
    # 4 s over 168 pixels.
    assert bars == [
        (46.0, 136.0, 42.0),
        (46.0, 136.0, 0.0),
        (237.0, 94.0, 84.0),
        (237.0, 10.0, 84.0),
    ]
    many = stacked_chart("T", "n", [Series("a", [(i, 1.0) for i in range(1, 301)], 1)])
    assert many.count("<rect") == 60


def test_smoothing_starts_at_the_first_value():
    assert smoothed([(1, 2.0), (2, 4.0)]) == [
        (1, pytest.approx(2.0)),
        (2, pytest.approx((0.7 * 0.3 * 2 + 0.3 * 4) / 0.51)),
    ]


def test_ticks_are_round_and_enclose():
    assert ticks(0, 0.83) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert ticks(0, 3) == [0, 1, 2, 3]
    assert ticks(5, 5) == [5, 6]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.125, "0.125"),
        (1234, "1,234"),
        (12500, "12.5k"),
        (2.5e6, "2.5M"),
        (3e-4, "3e-4"),
        (1.84e-7, "1.8e-7"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("prompt", "text", "kinds"),
    [
        ("ask\n<think>\n", "look</think>7.<|im_end|>", ["think", "answer"]),
        ("ask\n", "look at 7.<|im_end|>", ["answer"]),
        ("ask\n", f"I look.{zoom_call('{}')}<|im_end|>", ["answer", "call"]),
        ("ask\n", f"<think>{zoom_call('{}')}</think>7.<|im_end|>", ["think", "answer"]),
    ],
)
def test_thinking_is_shown_as_the_model_family_opens_a_turn(tmp_path, prompt, text, kinds):
    rollout = replace(direct(0, 1.0), prompt_ids=encode(prompt), segments=(policy(text),))
    record = group_to_json(group([rollout]), 1, decode, ImageFolder(tmp_path))
    shown = [block.kind for block in group_view(record).rollouts[0].blocks]
    assert shown == kinds
