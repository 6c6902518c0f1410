"""What a run was started with, without secrets."""

from __future__ import annotations

import subprocess

from axpo.record.meta import (
    HIDDEN,
    add_to_meta,
    code_state,
    environment,
    read_meta,
    without_secrets,
    write_meta,
)


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def test_each_process_of_a_run_adds_an_entry(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["axpo", "train", "demo", "--set", "judge.api_key=abc"])
    write_meta(tmp_path)
    monkeypatch.setattr("sys.argv", ["axpo", "train", "--resume", str(tmp_path)])
    write_meta(tmp_path, 4)
    add_to_meta(tmp_path, nodes=[{"name": "10.0.0.2", "cpus": 8.0, "gpus": 1}])
    first, second = read_meta(tmp_path)
    assert first["command"] == ["axpo", "train", "demo", "--set", f"judge.api_key={HIDDEN}"]
    assert (first["first_step"], second["first_step"]) == (0, 4)
    assert "torch" in first["packages"]
    assert first["host"]["cpus"] >= 1
    assert "nodes" not in first
    assert second["nodes"] == [{"name": "10.0.0.2", "cpus": 8.0, "gpus": 1}]


def test_a_damaged_file_is_no_reason_to_stop(tmp_path):
    assert read_meta(tmp_path) == []
    (tmp_path / "meta.json").write_text("{")
    assert read_meta(tmp_path) == []
    write_meta(tmp_path)
    assert len(read_meta(tmp_path)) == 1


def test_a_checkout_has_a_commit_and_tells_whether_files_differ_from_it(tmp_path):
    package = tmp_path / "axpo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert code_state(package) == (None, None)
    git(tmp_path, "init", "-q")
    # Untracked: installed in somebody else's checkout.
    assert code_state(package) == (None, None)
    git(tmp_path, "add", "axpo")
    git(tmp_path, "commit", "-q", "-m", "a")
    commit, dirty = code_state(package)
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "runs.txt").write_text("what a run writes is no change of the code")
    assert code_state(package) == (commit, False)
    (package / "__init__.py").write_text("x = 1")
    assert code_state(package) == (commit, True)


def test_the_environment_is_what_concerns_a_run_and_no_secret():
    kept = environment(
        {
            "HF_TOKEN": "hf_abc",
            "HF_HOME": "/cache",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789",
            "AXPO_API_KEY": "key",
            "AWS_SECRET_ACCESS_KEY": "not even named",
            "HF_ENDPOINT": "https://me:word@hub.example.org",
            "OPENAI_API_KEY": "not even named",
        }
    )
    assert kept == {
        "AXPO_API_KEY": HIDDEN,
        "HF_ENDPOINT": f"https://{HIDDEN}@hub.example.org",
        "HF_HOME": "/cache",
        "HF_TOKEN": HIDDEN,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": HIDDEN,
    }


def test_secrets_in_a_command_are_hidden_and_settings_are_not():
    assert without_secrets("--set=a.api_key=abc") == f"--set=a.api_key={HIDDEN}"
    assert without_secrets("{name: x, password: abc}") == f"{{name: x, password: {HIDDEN}"
    for kept in ("rollout.max_turn_tokens=64", "learner.lr=1e-5", "tools.mcp.token_env=MY_TOKEN"):
        assert without_secrets(kept) == kept
