"""What `axpo eval` on benchmarks refuses, in one line and before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from axpo import cli
from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.eval_cli import load_any, print_summary
from axpo.evaluation.bare import is_model, model_recipe
from axpo.evaluation.suite import Options, names_of, parse_judge, prepare
from axpo.tasks.judge import judges
from tests.axpo.evaluation import invented

DEBUG = Path("deploy/recipes/debug.yaml")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    for make in (invented.vstar, invented.hr_bench, invented.dynamath, invented.visual_probe):
        make(data)
    return data


def ready(data, *names, **options):
    recipe = load_recipe(DEBUG)
    return prepare(DEBUG, recipe, recipe.model, Options(names, data, **options))


def test_the_same_command_finds_the_same_folder_and_another_one_does_not(data):
    first = ready(data, "vstar")
    assert ready(data, "vstar").out == first.out
    assert first.out.parent == Path("runs")
    assert first.out.name.startswith("eval-debug-")
    others = [
        ready(data, "vstar", seed=5),
        ready(data, "vstar", samples=2),
        ready(data, "vstar", temperature=0.0),
        ready(data, "vstar", tools=[]),
        ready(data, "vstar", limit=1),
        ready(data, "hrbench-4k"),
        ready(data, "hrbench-4k", rotations="all"),
        ready(data, "vstar", "hrbench-4k"),
    ]
    assert len({one.out for one in [first, *others]}) == 9
    assert (len(others[4].asked), len(others[6].asked)) == (1, 8)
    assert others[2].plan.temperature == 0.0
    assert others[3].recipe.all_tools.tools == {}


def test_options_reach_the_benchmarks_that_have_them(data):
    found = ready(data, "vstar", "hrbench-4k", "dynamath", rotations="all", variants="all")
    assert [one.settings for one in found.plan.benchmarks] == [
        {},
        {"rotations": "all"},
        {"variants": "all"},
    ]
    assert found.doubts[0] == "vstar: 191 questions expected, 2 found"


def test_a_benchmark_that_needs_a_search_is_doubtful_without_one(tmp_path):
    invented.mmsearch(tmp_path)
    judge = judges.parse("exact")
    told = "mmsearch: its questions need a search, and no tool searches"
    count = "mmsearch: 300 questions expected, 2 found"
    assert ready(tmp_path, "mmsearch", judge=judge).doubts == [count, told]
    assert ready(tmp_path, "mmsearch", judge=judge, image_search=True).doubts == [count]
    recipe = load_recipe(
        DEBUG, ["tools.tools.tavily-search={kind: search, options: {provider: {kind: tavily}}}"]
    )
    found = prepare(DEBUG, recipe, recipe.model, Options(["mmsearch"], tmp_path, judge))
    assert found.doubts == [count]
    # A server of MCP may search, unless the chosen tools leave it out.
    recipe = load_recipe(DEBUG, ["tools.mcp=[{command: [server]}]"])
    for tools, doubts in ((None, [count]), ([], [count, told])):
        options = Options(["mmsearch"], tmp_path, judge, tools=tools)
        found = prepare(DEBUG, recipe, recipe.model, options)
        assert found.doubts == doubts
        assert bool(found.recipe.tools.mcp) == (tools is None)
        offered = ["image_zoom_in", "server"] if tools is None else []
        assert found.settings["tools"] == offered


def test_what_cannot_be_measured_is_named_before_anything_starts(data, tmp_path):
    refused = [
        (["nothing"], {}, "--benchmark 'nothing': expected one of"),
        (["hrbench-4k"], {"rotations": "two"}, "rotations='two'"),
        (["vstar"], {"rotations": "all"}, "--rotations all: none of vstar has rotations"),
        (["hrbench-4k"], {"variants": "all"}, "--variants all: none of hrbench-4k has variants"),
        (["vstar"], {"temperature": float("nan")}, "--temperature nan: expected a finite"),
        (["vstar"], {"tools": ["crystal_ball"]}, "--tools crystal_ball: the recipe has image_zoom"),
        (["visualprobe-hard"], {}, "visualprobe-hard: needs a judge. --judge exact compares"),
        (["tests.axpo.evaluation.maps:NUMBER"], {}, "expected a function of"),
    ]
    for names, options, message in refused:
        with pytest.raises(AxpoError) as error:
            ready(data, *names, **options)
        assert message in str(error.value)
    assert ready(data, "visualprobe-hard", judge=judges.parse("exact")).asked
    # Every benchmark without files has a line of its own.
    with pytest.raises(AxpoError) as error:
        ready(tmp_path, "vstar", "mathvision")
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["vstar", "mathvision"]


def test_names_and_judges_are_read_as_typed(tmp_path):
    assert len(names_of("paper", None)) == 9
    assert names_of(None, "vstar, mmsearch") == ["vstar", "mmsearch"]
    with pytest.raises(AxpoError, match="vstar: named twice"):
        names_of("paper", "vstar")
    with pytest.raises(AxpoError, match="--suite all: expected one of paper"):
        names_of("all", None)
    spec = "{name: endpoint, base_url: http://localhost:8000/v1, model: m}"
    file = tmp_path / "judge.yaml"
    file.write_text(spec)
    assert parse_judge(spec) == parse_judge(str(file))
    assert parse_judge("exact").name == "exact"
    assert (
        parse_judge("{name: local, model: some/model}").describe().startswith("some/model (local)")
    )
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.yaml").write_text("")
    files = [str(tmp_path / f"{name}.yaml") for name in ("none", "bytes", "empty")]
    for text in ("nobody", "{name: endpoint}", "{a: [", "[1, 2]", "5", "~", *files, str(tmp_path)):
        with pytest.raises(AxpoError, match="--judge"):
            parse_judge(text)


def test_the_command_says_what_it_lacks_in_one_line(monkeypatch, capsys, tmp_path, data):
    wrong = [
        ([], "expected a TARGET, or --compare A B"),
        ([str(DEBUG), "--suite", "paper"], "--data: expected the folder"),
        (["--compare", str(tmp_path), str(tmp_path)], "no evaluation"),
        ([str(DEBUG), "--judge", "exact"], "--judge: needs --suite or --benchmark"),
        ([str(DEBUG), "--limit", "2", "--seed", "0"], "--limit, --seed: need --suite or --bench"),
        ([str(DEBUG), "--image-search"], "--image-search: needs --suite or --benchmark"),
        ([str(DEBUG), "--benchmark", "vstar", "--data", str(tmp_path)], "vstar_bench is not there"),
    ]
    for arguments, message in wrong:
        monkeypatch.setattr("sys.argv", ["axpo", "eval", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


def test_a_model_needs_no_recipe(tmp_path):
    folder = "axpo/models/qwen3-vl-tiny"
    assert [is_model(name) for name in (folder, "Qwen/Qwen3-VL-8B-Thinking")] == [True, True]
    others = [str(DEBUG), "deploy/recipes/none.yaml", "deploy/recipes", str(tmp_path), "none.yaml"]
    assert not any(map(is_model, others))
    recipe = model_recipe(folder, ["rollout.max_turns=2"])
    assert (recipe.model, recipe.rollout.max_turns) == (folder, 2)
    assert recipe.rollout.max_context_tokens == 2048  # what the model has
    assert model_recipe("owner/name").rollout.max_context_tokens == 32_768
    for damaged in ("[" * 100_000, "[]", '{"text_config": 5}', '{"max_position_embeddings": null}'):
        (tmp_path / "config.json").write_text(damaged)
        assert model_recipe(str(tmp_path)).rollout.max_context_tokens == 32_768
    assert load_any(Path(folder), [], benchmarks=True)[1] == folder
    with pytest.raises(AxpoError, match="is a model without held-out questions: give --suite or"):
        load_any(Path(folder), [], benchmarks=False)
    assert load_any(DEBUG, [], benchmarks=False)[0].name == "debug"


def test_what_is_printed_may_have_brackets_and_escape_codes(tmp_path, capsys):
    console = Console(width=200)
    name = "models/[/red]8b"
    reason = "judge said [/oops] \x1b]0;mine\x07"
    part = {"title": "My [bold] maps", "measured": 1, "tool_use": None}
    part |= {"set_aside": {"counts": {"unjudged": 1}, "reasons": {"maps/[/x]": reason}}}
    part["quoted_from_the_paper"] = {}
    summary = {"model": name, "judge": "m[/]", "samples": 1, "average": {}}
    print_summary(summary | {"benchmarks": {"[/maps]": part}}, console)
    said = capsys.readouterr().out
    for text in (name, "m[/]", "My [bold] maps", "[/maps]: 1 unjudged", "maps/[/x]: judge said"):
        assert text in said
    assert "\x1b" not in said
    assert "[/oops] \\x1b]0;mine\\x07" in said
