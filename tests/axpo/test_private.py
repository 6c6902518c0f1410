"""What Ray writes on a machine with several users."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from axpo import private
from axpo.errors import AxpoError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(private, "ROOT", str(tmp_path))
    return tmp_path


def test_files_are_the_users_own_inside_and_as_before_after(home):
    before = os.umask(0o022)
    try:
        with private.files() as workers:
            (home / "inside").write_text("secret")
        (home / "after").write_text("a run's")
    finally:
        os.umask(before)
    assert (mode(home / "inside"), mode(home / "after")) == (0o600, 0o644)
    assert workers["env_vars"] == {private.UMASK: "22"}
    assert workers["worker_process_setup_hook"] == "axpo.private.restore_umask"


def test_a_worker_writes_as_the_user_would(home, monkeypatch):
    before = os.umask(0o077)
    try:
        monkeypatch.setenv(private.UMASK, "27")
        private.restore_umask()
        (home / "file").write_text("")
    finally:
        os.umask(before)
    assert mode(home / "file") == 0o640


def test_an_open_token_is_closed_and_said(home, caplog):
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o755)
    token.write_text("secret")
    token.chmod(0o644)
    with private.files():
        assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert f"{token} was open to other users of this machine (mode 644)" in caplog.text
    caplog.clear()
    with private.files():
        pass
    assert not caplog.text  # nothing is left to say


def test_a_session_folder_lies_in_one_that_only_the_user_can_enter(home):
    folder = private.session_folder()
    around = home / f"axpo-{os.getuid()}"
    assert folder == f"{around}/ray"
    assert mode(around) == 0o700
    around.chmod(0o777)
    private.session_folder()
    assert mode(around) == 0o700


def test_the_users_own_choice_of_a_folder_is_taken(home, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/me")
    assert private.session_folder() == "/scratch/me/ray"


def test_a_folder_of_somebody_else_or_a_link_is_refused(home, monkeypatch):
    (home / f"axpo-{os.getuid()}").symlink_to(home)
    with pytest.raises(AxpoError, match="set RAY_TMPDIR to a folder that only you can enter"):
        private.session_folder()


def test_the_socket_of_a_session_has_room_in_the_longest_path():
    longest = f"/tmp/axpo-{2**32 - 2}/ray/session_2026-11-30_23-48-56_594411_4194304"
    assert len(f"{longest}/sockets/plasma_store") <= 107


def test_a_run_starts_a_cluster_of_its_own_beside_the_traces_of_a_dead_one():
    # The paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="axpo-") as around:
        assert_starts_alone(Path(around))


def assert_starts_alone(around):
    folder = around / "ray"
    folder.mkdir()
    # `ray start --head` leaves it; a Ray that is killed does not remove it.
    (folder / "ray_current_cluster").write_text("127.0.0.1:1")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    code = (
        "import ray, axpo.session as s\n"
        "s._join_or_start()\n"
        "print(len(ray.nodes()), ray.get_runtime_context().gcs_address != '127.0.0.1:1')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"RAY_TMPDIR": str(around)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["1", "True"], done.stderr
