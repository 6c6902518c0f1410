"""The back ends of the search tools in a recipe.

They are checked on the driver, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_RETRY_AFTER_S = 30.0
"""Seconds. A provider that asks for a longer pause is tried earlier, then parked."""


class LocalOptions(BaseModel):
    """The embedded local index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local"] = "local"
    index: str = Field(
        min_length=1,
        description="folder that `axpo index build` wrote, on every node with a tool server",
    )
    corpus: str | None = Field(
        default=None,
        min_length=1,
        description="what was indexed, if it is not inside the folder that holds the index; a "
        "changed corpus is then noticed",
    )


class TavilyOptions(BaseModel):
    """Tavily's API.

    The key comes from the environment variable TAVILY_API_KEY of the tool server, never from a
    recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tavily"] = "tavily"
    base_url: str = Field(
        default="https://api.tavily.com",
        pattern=r"^https?://",
        description="another one for a proxy",
    )
    search_depth: Literal["basic", "advanced", "fast", "ultra-fast"] = "basic"
    topic: Literal["general", "news", "finance"] = "general"
    include_domains: tuple[str, ...] = ()
    exclude_domains: tuple[str, ...] = ()
    timeout_s: float = Field(default=10.0, gt=0, le=120, description="of one attempt")
    attempts: int = Field(default=3, ge=1, le=10)
    requests_per_minute: float = Field(
        default=100, gt=0, description="of this server; Tavily's development keys allow 100 in all"
    )
    cache: str = Field(
        default="~/.cache/axpo/tavily",
        min_length=1,
        description="folder of answers; on a cluster, a shared one",
    )
