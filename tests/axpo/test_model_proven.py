"""The files of a model that comes with the package need no second check."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from axpo.model_folder import proven
from axpo.model_folder.proven import FILE, is_proven, model_hash

TINY = "axpo/models/qwen3-vl-tiny"


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(TINY, copy)
    return copy


def test_the_files_that_were_served_are_proven_and_others_are_not(folder):
    assert is_proven(folder)
    (folder / "README.md").write_text("another card")
    assert is_proven(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert not is_proven(folder)


def test_a_folder_from_elsewhere_proves_nothing_of_itself(folder):
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    (folder / FILE).write_text(json.dumps([{"model": model_hash(folder)}]))
    assert not is_proven(folder)


def test_a_large_folder_is_checked_and_not_hashed(folder, monkeypatch):
    monkeypatch.setattr(proven, "SMALL", 1_000_000)
    monkeypatch.setattr(proven, "model_hash", None)
    assert not is_proven(folder)


def test_another_name_of_a_file_is_another_model(folder):
    before = model_hash(folder)
    (folder / "generation_config.json").rename(folder / "other.json")
    assert model_hash(folder) != before


def test_the_check_of_the_demo_imports_neither_torch_nor_scikit_learn():
    code = (
        "import json, sys; from axpo.config import load_recipe; "
        "from axpo.model_folder import check_models; recipe = load_recipe('demo'); "
        "recipe.check_inputs(check_models(recipe).fits); "
        "print(json.dumps([m for m in ('torch', 'sklearn') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [], done.stderr
