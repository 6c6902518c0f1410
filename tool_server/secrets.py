"""Keep the keys of a server out of what it sends back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

SHORTEST = 8
"""Characters. A shorter value is no secret, and taking it out would damage texts."""

HIDDEN = "[secret]"


class Secrets:
    """The values that must not reach a log, a file or the policy.

    A server knows its key, and may repeat it in an error or in an answer.
    """

    def __init__(self, values: Iterable[str]) -> None:
        """Remember the values; short ones are not looked for."""
        spelled: set[str] = set()
        for value in values:
            if len(value) >= SHORTEST:
                spelled |= {value, quote(value, safe="")}
        # Longest first: one may begin with another.
        parts = [re.escape(value) for value in sorted(spelled, key=len, reverse=True)]
        self._pattern = re.compile("|".join(parts), re.IGNORECASE) if parts else None

    def hide(self, text: str) -> str:
        """Return a text without the secrets."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)
