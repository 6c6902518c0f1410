"""Folders that do not outlive their process for long."""

import os
import signal
import subprocess
import sys

from axpo.scratch import PREFIX, Scratch, remove_left

CHILD = """
import sys, time
from pathlib import Path
from axpo.scratch import Scratch
folder = Scratch(Path(sys.argv[1]))
(folder.path / "bucket").write_bytes(bytes(1 << 20))
print(folder.path.name, flush=True)
time.sleep(60)
"""


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        folder = tmp_path / child.stdout.readline().strip()
        assert remove_left((tmp_path,)) == []
        assert (folder / "bucket").stat().st_size == 1 << 20
        child.send_signal(signal.SIGKILL)
    assert folder.exists()
    assert remove_left((tmp_path,)) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_private_and_goes_with_its_block(tmp_path):
    with Scratch(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
        assert remove_left((tmp_path,)) == []
    assert list(tmp_path.iterdir()) == []


def test_in_a_shared_folder_others_make_folders_and_see_none(tmp_path):
    folder = Scratch(tmp_path)
    folder.share()
    assert folder.path.stat().st_mode & 0o7777 == 0o1733
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_holds_is_gone(tmp_path):
    folder = Scratch(tmp_path)
    assert folder.path.exists()
    del folder
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_of_ours_stays(tmp_path):
    (tmp_path / f"{PREFIX}file").write_text("x")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    (tmp_path / f"{PREFIX}link").symlink_to(other)
    assert remove_left((tmp_path,)) == []
    assert (other / "file").exists()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, calls = os.open, []

    def late(path, *options, **named):
        calls.append(path)
        if len(calls) == 1:
            os.rmdir(path)
        return real(path, *options, **named)

    monkeypatch.setattr(os, "open", late)
    with Scratch(tmp_path) as folder:
        assert folder.exists()
    assert len(set(calls)) == 2
