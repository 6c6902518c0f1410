"""Fixtures of the tool server's tests."""

import pytest

from axpo.registry import Registry
from tool_server.config import tool_kinds


@pytest.fixture
def own_kinds(monkeypatch) -> Registry:
    """Let a test register kinds of its own, which are forgotten after it."""
    monkeypatch.setattr(tool_kinds, "_variants", dict(tool_kinds._variants))
    return tool_kinds
