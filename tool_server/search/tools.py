"""The kinds of tools `search` and `image_search`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from axpo.plain_files import NotPlain, inside
from tool_server.arguments import define
from tool_server.images import ImageError, ImageLimits, decode, fit
from tool_server.search.options import MAX_RETRY_AFTER_S, LocalOptions, TavilyOptions
from tool_server.search.results import Caps, Result, SearchArguments, render
from tool_server.tool import (
    Output,
    Pixels,
    Shown,
    Tool,
    ToolCall,
    ToolKind,
    ToolUnavailable,
    tool_kinds,
)

SEARCH = Shown(
    "Search for a query. Returns titles, addresses and the parts of the text that match.",
    SearchArguments,
)
IMAGE_SEARCH = Shown(
    "Search for images by what their captions say. Returns captions and images.", SearchArguments
)


@tool_kinds.register("search")
class Search(ToolKind, Caps):
    """Search a local index of texts, or the web through Tavily.

    `provider` is one back end for the whole run: there is no switch to another one when it fails.
    """

    provider: LocalOptions | TavilyOptions = Field(discriminator="kind")

    def open(self, name: str) -> Tool:
        """Return the tool over the back end that the recipe names."""
        if isinstance(self.provider, LocalOptions):
            return _open_local(name, self.provider, self)
        return _open_tavily(name, self.provider, self)

    def shown(self) -> Shown:
        """Return what the policy reads."""
        return SEARCH

    def default_limits(self) -> dict[str, Any]:
        """Return a deadline behind Tavily's own.

        It leaves time for all attempts, the longest pauses between them, and half a minute for the
        rate limit.
        """
        if isinstance(self.provider, LocalOptions):
            return {}
        attempts = self.provider.attempts
        requests_s = attempts * self.provider.timeout_s
        pauses_s = (attempts - 1) * MAX_RETRY_AFTER_S
        return {"deadline_s": requests_s + pauses_s + 30}


@tool_kinds.register("image_search")
class ImageSearch(ToolKind, Caps):
    """Search a local index of captioned images."""

    index: str = Field(
        min_length=1, description="folder that `axpo index build` wrote from captioned images"
    )
    corpus: str | None = Field(
        default=None,
        min_length=1,
        description="what was indexed, if it is not inside the folder that holds the index",
    )
    max_images: int = Field(
        default=3, ge=1, le=20, description="images of one answer; more results are not shown"
    )
    max_side: int = Field(default=1024, ge=32, description="pixels; larger images are downscaled")
    limits: ImageLimits = Field(default_factory=ImageLimits, description="what is decoded")

    def open(self, name: str) -> Tool:
        """Return the tool. Raises ToolUnavailable if the index or its images are not here."""
        from tool_server.search.index import SearchIndex

        index = SearchIndex(Path(self.index), "images", _path(self.corpus))
        folder = index.folder
        if folder is None:
            raise ToolUnavailable(
                f"{name}: the images of {self.index} are outside of the folder that holds it; "
                "name what was indexed with the option `corpus`"
            )
        if not folder.is_dir():
            raise ToolUnavailable(
                f"{name}: the images of {self.index} are not here: no folder {folder}"
            )

        def run(call: ToolCall) -> Output:
            query, wanted = call.arguments.query, call.arguments.max_results
            results = index.search(query, min(wanted, self.max_images), self.snippet_chars)
            images = tuple(self._image(name, folder, result) for result in results)
            text = render(query, results, self)
            # The policy asked for more than the recipe lets it see, and there may be more.
            if wanted > self.max_images == len(results):
                text += f"\n\n[an answer has at most {self.max_images} images]"
            return text, images

        return define(name, *IMAGE_SEARCH, run, pure=True)

    def shown(self) -> Shown:
        """Return what the policy reads."""
        return IMAGE_SEARCH

    def _image(self, name: str, folder: Path, result: Result) -> Pixels:
        try:
            pixels = decode(inside(folder, result.image), self.limits)
        except (ImageError, NotPlain) as error:
            # The build checked the image, so it has gone or changed since, or the index is not one
            # that we built: not the policy's fault.
            raise ToolUnavailable(f"{name}: {folder / result.image} {error}") from None
        return fit(pixels, self.max_side, None)


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _open_local(name: str, provider: LocalOptions, caps: Caps) -> Tool:
    from tool_server.search.index import SearchIndex

    index = SearchIndex(Path(provider.index), "texts", _path(provider.corpus))

    def run(call: ToolCall) -> Output:
        query = call.arguments.query
        results = index.search(query, call.arguments.max_results, caps.snippet_chars)
        return render(query, results, caps), ()

    return define(name, *SEARCH, run, pure=True)


def _open_tavily(name: str, provider: TavilyOptions, caps: Caps) -> Tool:
    from tool_server.search.tavily import Tavily

    tavily = Tavily(name, provider)

    async def run(call: ToolCall) -> Output:
        query = call.arguments.query
        results = await tavily.search(query, call.arguments.max_results)
        return render(query, results, caps), ()

    return replace(define(name, *SEARCH, run), close=tavily.close)
