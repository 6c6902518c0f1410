"""Tools that do nothing, to measure what is around them."""


async def echo(text: str) -> str:
    """Return the text."""
    return text
