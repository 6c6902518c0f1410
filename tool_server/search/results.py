"""The one form of search results, and what the policy reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tool_server.arguments import echo, integer
from tool_server.search.corpus import clean

MAX_QUERY = 400
"""Characters. Tavily refuses longer queries."""

MAX_RESULTS = 20
MAX_TITLE = 200
MAX_URL = 300


@dataclass(frozen=True)
class Result:
    """One hit. All text is untrusted.

    Attributes:
        title: of the page or document.
        url: its address, or the document's id if it has no address.
        snippet: the part of its text that matches.
        score: larger is better; comparable within one answer only.
        image: of image search, the path relative to the corpus's folder.
    """

    title: str
    url: str
    snippet: str
    score: float
    image: str = ""


def _query(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PydanticCustomError("query", "expected words to search for")
    return " ".join(clean(value).split())


class SearchArguments(BaseModel):
    """What the policy writes. The descriptions are part of the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query: Annotated[str, BeforeValidator(_query)] = Field(
        max_length=MAX_QUERY, description="What to search for"
    )
    max_results: Annotated[int, integer(1, MAX_RESULTS)] = Field(
        default=5, ge=1, le=MAX_RESULTS, description=f"Number of results, 1 to {MAX_RESULTS}"
    )


class Caps(BaseModel):
    """How much of the results the policy reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    snippet_chars: int = Field(
        default=500, ge=50, le=5000, description="characters of a result's text"
    )
    max_chars: int = Field(
        default=8000, ge=500, le=50_000, description="characters of the whole answer"
    )


def render(query: str, results: Sequence[Result], caps: Caps) -> str:
    """Return what the policy reads: numbered results with title, address and snippet.

    Args:
        query: what the policy asked for.
        results: best first.
        caps: what is longer is cut, and said to be cut.
    """
    if not results:
        return f"No results for {echo(query)}. Try other words."
    blocks: list[str] = []
    # Each block counts with the two line ends before it, which the first does not have.
    left = caps.max_chars + 2
    for number, result in enumerate(results, 1):
        block = f"{number}. {_block(result, caps)}"
        left -= len(block) + 2
        if left < 0 and not blocks:
            # A first result that does not fit alone is cut; the others are left out.
            block = block[: caps.max_chars - 3] + "..."
        elif left < 0:
            blocks.append(
                f"[{len(results) - len(blocks)} more results cut: an answer has at most "
                f"{caps.max_chars} characters]"
            )
            break
        blocks.append(block)
    return "\n\n".join(blocks)


def _block(result: Result, caps: Caps) -> str:
    lines = [
        _line(result.title, MAX_TITLE),
        _line(result.url, MAX_URL),
        _line(result.snippet, caps.snippet_chars),
    ]
    return "\n".join(line for line in lines if line)


def _line(text: str, limit: int) -> str:
    """Return the text on one line, cut to `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."
