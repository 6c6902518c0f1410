"""What commands say of a judge that verifies, before anything starts."""

import json

import pytest

from axpo import cli
from axpo.errors import AxpoError
from axpo.tasks.judge import judges
from tests.axpo.tasks.bad_rows import encoded
from tests.axpo.tasks.faulty_judge import serving

DEBUG = "deploy/recipes/debug.yaml"


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command with a judge and returns exit code, output and error.

    Ray does not start, and runs go into `runs`.
    """

    def start(*arguments, **options):
        raise AxpoError("started")

    monkeypatch.setattr("axpo.session.ray_session", start)
    monkeypatch.setattr("axpo.training.run.ray_session", start)
    monkeypatch.setattr("axpo.session._join_or_start", lambda: None)
    (tmp_path / "1.png").write_bytes(encoded())
    row = {"question": "Which digit?", "images": ["1.png"], "answer": "seven"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")

    def run(command, families=0, **judge):
        verifier = {"name": "judge", "judge": {"name": "endpoint", "model": "m"} | judge}
        rows = str(tmp_path / "rows.jsonl")
        task = {"kind": "dataset", "train": rows, "held_out": rows, "verifier": verifier}
        if families:
            names = [f"family{number}" for number in range(families)]
            task = {"kind": "mixed", "families": {name: {"task": task} for name in names}}
        (tmp_path / "recipe.yaml").write_text(
            json.dumps(read(DEBUG) | {"task": task, "logging": {"root": str(tmp_path / "runs")}})
        )
        monkeypatch.setattr("sys.argv", ["axpo", command, str(tmp_path / "recipe.yaml")])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        output, error = capsys.readouterr()
        # What is refused leaves no run behind.
        assert list(tmp_path.glob("runs/*/recipe.yaml")) == [] or "started" in error
        return stopped.value.code or 0, output, error

    return run


def read(recipe):
    import yaml

    with open(recipe, encoding="utf-8") as file:
        return yaml.safe_load(file)


@pytest.mark.parametrize("families", [0, 2])
@pytest.mark.parametrize("command", ["check", "train", "eval"])
def test_a_missing_key_is_refused_by_every_command(say, monkeypatch, command, families):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with serving(key="right") as server:
        code, _, error = say(command, families, base_url=server.url, key_env="JUDGE_KEY")
        assert server.requests == 0
    assert (code, error.strip()) == (
        2,
        "error judge: the environment has no JUDGE_KEY, its key",
    )


def test_check_warns_of_a_judge_that_does_not_answer_and_a_run_does_not_start(say, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "wrong")
    with serving(key="right") as server:
        refused = f"judge: {server.url} refuses the key in JUDGE_KEY (status 401)"
        options = {"base_url": server.url, "key_env": "JUDGE_KEY"}
        code, output, _ = say("check", **options)
        assert code == 0
        assert f"warning {refused}" in output
        for command in ("train", "eval"):
            assert say(command, **options)[::2] == (2, f"error {refused}\n")
    silent = f"judge: {server.url}: ConnectError: [Errno 111] Connection refused, after 1 attempt"
    code, output, _ = say("check", base_url=server.url)
    assert code == 0
    assert f"warning {silent}\n" in output
    assert say("train", base_url=server.url, attempts=1)[::2] == (2, f"error {silent}\n")


def test_a_judge_that_answers_is_asked_once_by_each_family(say):
    with serving() as server:
        code, output, _ = say("check", 2, base_url=server.url)
        assert (code, server.requests) == (0, 2)
        assert "judge: http" not in output
        assert say("train", base_url=server.url)[2] == "error started\n"


def test_check_is_not_as_patient_as_a_run():
    with serving(lambda number: 503) as server:
        judge = judges.parse({"name": "endpoint", "base_url": server.url, "model": "m"})
        with pytest.raises(AxpoError, match=r"status 503, after 1 attempt$"):
            judge.check(1.0)
        assert server.requests == 1
