"""Links in a model folder: those that lead out of it are refused before a run."""

from pathlib import Path

import pytest

from axpo.model_folder.files import check_links


def folder_in(parent: Path) -> Path:
    folder = parent / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_link_out_of_a_model_folder_is_refused(tmp_path):
    folder = folder_in(tmp_path / "model")
    (tmp_path / "secret").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")  # not copied, so it does no harm
    check_links(folder)
    (folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"merges\.txt: leaves the folder .*put the file itself"):
        check_links(folder)


def test_a_snapshot_of_the_hub_is_links_into_its_repository(tmp_path):
    folder = folder_in(tmp_path / "models--a--b")
    blob = tmp_path / "models--a--b" / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_text("{}")
    (folder / "tokenizer.json").symlink_to("../../blobs/1")
    (folder / "vocab.json").symlink_to("config.json")
    check_links(folder)
