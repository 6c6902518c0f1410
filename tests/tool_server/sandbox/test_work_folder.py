"""The folder of a jail's calls, and those that killed servers left."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from tool_server.sandbox.work_folder import WorkFolder

SERVER = """
import time
from tool_server.sandbox.work_folder import WorkFolder
folder = WorkFolder()
folder.share()
(folder.path / "0").mkdir()
(folder.path / "0" / "x").write_text("of a call")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_a_killed_server_left_is_removed_by_the_next_one(tmp_path):
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    left = server.stdout.readline().strip()
    mine = WorkFolder()
    assert os.path.exists(f"{left}/0/x")  # it is in use
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    other = WorkFolder()
    assert not os.path.exists(left)
    assert sorted(tmp_path.iterdir()) == sorted([mine.path, other.path])
    for folder in (mine, other):
        folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_removed_through_a_link(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").touch()
    (tmp_path / "axpo-python-link").symlink_to(tmp_path / "kept")
    (tmp_path / "axpo-python-file").touch()
    WorkFolder().remove()
    assert (tmp_path / "kept" / "x").exists()
    assert (tmp_path / "axpo-python-file").exists()


def test_others_make_folders_in_it_and_see_none(tmp_path):
    folder = WorkFolder()
    assert folder.path.stat().st_mode & 0o7777 == 0o700
    folder.share()
    assert folder.path.stat().st_mode & 0o7777 == 0o1733
    folder.remove()
