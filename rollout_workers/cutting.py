"""Cut what a tool says to a number of tokens.

Characters are no measure: 21,000 characters of digits are 16,518 tokens of Qwen, a whole context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def cut(text: str, limit: int, tokenizer: Tokenizer) -> str:
    """Return a text as it is, or its first `limit` tokens with a line that says what is missing.

    Args:
        text: of a tool's result.
        limit: tokens that are kept, at most.
        tokenizer: knows no added token, so it reads the text as text.
    """
    # A token holds at least one byte.
    if len(text.encode("utf-8", "surrogatepass")) <= limit:
        return text
    encoded = tokenizer.encode(text, add_special_tokens=False)
    over = len(encoded.ids) - limit
    if over <= 0:
        return text
    _, end = encoded.offsets[limit - 1]
    return f"{text[:end]}\n[{over} more tokens cut]"
