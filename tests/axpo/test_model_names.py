"""Models by their name on the hub, and the commands that check a model."""

import json
from pathlib import Path

import pytest
from PIL import Image

from axpo import cli
from axpo.errors import AxpoError
from axpo.model_folder import check_models
from axpo.model_folder.check import folder_of
from axpo.record.run import RunDirectory
from rollout_workers.families import what_works
from tests.axpo.model_folders import (
    DEMO,
    EMBEDDED,
    change,
    copy,
    recipe,
    refused,
    warnings_of_folder,
)

# Names of the hub.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder that the hub's cache has for `a/model`; there is no network."""
    import httpx
    import huggingface_hub.constants

    def offline(*arguments, **options):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr("httpx.get", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub/models--a--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0123")
    (model / "snapshots").mkdir()
    return model / "snapshots/0123"


def test_a_name_in_the_cache_is_checked_whole(thinking, cache):
    copy(thinking, cache)
    assert folder_of("a/model") == cache
    assert warnings_of_folder(check_models(recipe("a/model"))) == []
    (cache / "preprocessor_config.json").unlink()
    assert refused("a/model").startswith(f"{cache}: no image processor")


def test_of_a_name_without_weights_in_the_cache_the_configuration_is_checked(thinking, cache):
    copy(thinking, cache)
    (cache / "model.safetensors").unlink()
    report = check_models(recipe("a/model"))
    assert report.lines == ("model of the hub: qwen3_vl",)
    assert report.warnings == (
        "not checked: tokenizer, chat template, processor and weights of a/model (not in the "
        "local cache; `hf download a/model` puts them there)",
    )
    change(cache / "config.json", {"text_config/max_position_embeddings": 1000})
    assert refused("a/model") == (
        "rollout.max_context_tokens=1024: must be at most 1000, which is max_position_embeddings "
        "of DIR, config.json"
    )
    change(cache / "config.json", {"model_type": "qwen3"})
    expected = f"DIR, config.json: model_type 'qwen3'; what works is {what_works()}"
    assert refused("a/model") == expected


@pytest.mark.parametrize(
    ("model", "positions"),
    [("Qwen/Qwen3-VL-8B-Thinking", 262_144), ("Qwen/Qwen2.5-VL-3B-Instruct", 128_000)],
)
def test_the_context_of_a_known_name_is_checked_without_network(model, positions, cache):
    assert check_models(recipe(model, f"rollout.max_context_tokens={positions}")).lines
    line = refused(model, f"rollout.max_context_tokens={positions + 1}")
    assert line == (
        f"rollout.max_context_tokens={positions + 1}: must be at most {positions}, which is "
        "max_position_embeddings of DIR, config.json"
    )


def test_of_a_name_without_network_nothing_is_checked_and_that_is_said(cache):
    report = check_models(recipe("b/model"))
    assert report.lines == ()
    assert report.warnings == (
        "nothing of the model was checked (b/model: not in the local cache, and the hub does not "
        "give its config.json)",
    )


# The commands.


@pytest.mark.parametrize(
    "command",
    [
        ["check", DEMO],
        ["train", DEMO],
        ["train", DEMO, "--rollouts-only"],
        ["train", DEMO, "--replay", "RECORDED"],
        ["sft", DEMO],
        ["eval", DEMO],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_broken_folder(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("axpo.session.ray_session", None)  # nothing starts
    model = copy(Path(EMBEDDED[0]).absolute(), tmp_path / "model")
    (model / "processor_config.json").unlink()
    settings = ["--set", f"model={model}", "--set", f"logging.root={tmp_path / 'runs'}"]
    recorded = RunDirectory.create("recorded", {}, tmp_path)
    recorded.close()
    told = [str(recorded.path) if word == "RECORDED" else word for word in command]
    monkeypatch.setattr("sys.argv", ["axpo", *told, *settings])
    with pytest.raises(SystemExit):
        cli.main()
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"error {model}: no image processor (expected one of ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["check", "eval", "sft"])
def test_every_command_names_questions_that_do_not_fit_before_it_starts(
    command, tmp_path, monkeypatch, capsys
):
    def start(*arguments, **options):
        raise AxpoError("started")

    monkeypatch.setattr("axpo.session.ray_session", start)
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    # 1024 tokens: 289 of every prompt, 4 of the picture, one must be free. " the" is one token,
    # and "the" at the beginning two.
    rows = [{"question": " the" * words, "images": "a.png", "answer": "7"} for words in (729, 730)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = f"task={{kind: dataset, train: {data}, held_out: {data}, system: null}}"
    monkeypatch.setattr("sys.argv", ["axpo", command, DEMO, "--set", task])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    assert printed.out.count(f"set aside in a run: {data}, row 2: 4 tokens of images and") == 2
    assert "row 1:" not in printed.out
    assert printed.err.endswith("" if command == "check" else "error started\n")


def test_check_prints_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["axpo", "check", DEMO])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert "   prompt without question: 306 tokens, of them tools: 276\n" in said
    assert "   model folder: Qwen3-VL Thinking, 109 tensors in 1 file\n" in said
