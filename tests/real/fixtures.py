"""Real-shaped model folders, one of each family, made once a session: see `folder.py`.

`tests/conftest.py` gives them to the tests of all rooms. They have an untied head and write
well-formed turns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.folder import Family, Spec, build, speaking


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Qwen3-VL Thinking."""
    return made("thinking", tmp_path_factory)


@pytest.fixture(scope="session")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Qwen3-VL Instruct."""
    return made("instruct", tmp_path_factory)


@pytest.fixture(scope="session")
def qwen2_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Qwen2.5-VL."""
    return made("qwen2_5", tmp_path_factory)


def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a folder of a family."""
    # Narrow: with 151,936 ids the width is most of what an engine and a rank compute.
    spec = Spec(family, tied=False, hidden=128)
    return speaking(build(tmp_path_factory.mktemp("real") / family, spec))
