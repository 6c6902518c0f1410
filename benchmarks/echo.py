"""Tools that do nothing, to measure what is around them."""

from __future__ import annotations


async def echo(text: str) -> str:
    """Return the text."""
    return text
