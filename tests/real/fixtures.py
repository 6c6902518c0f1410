"""Real-shaped model folders, one of each family, made once a session: see `folder.py`.

`tests/conftest.py` gives them to the tests of all rooms.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.folder import Spec, build, speaking


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Qwen3-VL Thinking with an untied head that writes well-formed turns."""
    return speaking(
        build(tmp_path_factory.mktemp("real") / "thinking", Spec("thinking", tied=False))
    )


@pytest.fixture(scope="session")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Qwen3-VL Instruct with an untied head that writes well-formed turns."""
    return speaking(
        build(tmp_path_factory.mktemp("real") / "instruct", Spec("instruct", tied=False))
    )


@pytest.fixture(scope="session")
def qwen2_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Qwen2.5-VL with an untied head that writes well-formed turns."""
    return speaking(build(tmp_path_factory.mktemp("real") / "qwen2_5", Spec("qwen2_5", tied=False)))
