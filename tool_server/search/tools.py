"""`search` and `image_search` as tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tool_server.arguments import define
from tool_server.images import ImageError, decode, fit
from tool_server.search.options import (
    MAX_RETRY_AFTER_S,
    ImageSearchOptions,
    LocalOptions,
    SearchOptions,
)
from tool_server.search.results import SearchArguments, render
from tool_server.tool import Output, Tool, ToolCall, ToolKind, ToolUnavailable

DESCRIPTION = "Search for a query. Returns titles, addresses and the parts of the text that match."
IMAGE_DESCRIPTION = "Search for images by what their captions say. Returns captions and images."


def open_search(name: str, options: SearchOptions) -> Tool:
    """The back end that the recipe names. Raises ToolUnavailable."""
    if isinstance(options.provider, LocalOptions):
        from tool_server.search.index import SearchIndex

        index = SearchIndex(Path(options.provider.index), "texts")

        def local(call: ToolCall) -> Output:
            query = call.arguments.query
            return render(
                query,
                index.search(query, call.arguments.max_results, options.snippet_chars),
                options,
            ), ()

        return define(name, DESCRIPTION, SearchArguments, local, pure=True)

    from tool_server.search.tavily import Tavily

    tavily = Tavily(name, options.provider)

    async def remote(call: ToolCall) -> Output:
        query = call.arguments.query
        return render(query, await tavily.search(query, call.arguments.max_results), options), ()

    return define(name, DESCRIPTION, SearchArguments, remote, close=tavily.close)


def open_image_search(name: str, options: ImageSearchOptions) -> Tool:
    """A local index of captioned images. Raises ToolUnavailable."""
    from tool_server.search.index import SearchIndex

    index = SearchIndex(Path(options.index), "images")
    folder = index.folder
    if not folder.is_dir():
        raise ToolUnavailable(
            f"{name}: the images of {options.index} are not here: no folder {folder}"
        )

    def run(call: ToolCall) -> Output:
        query, wanted = call.arguments.query, call.arguments.max_results
        results = index.search(query, min(wanted, options.max_images), options.snippet_chars)
        images = []
        for result in results:
            try:
                images.append(
                    fit(decode(folder / result.image, options.limits), options.max_side, None)
                )
            except ImageError as error:
                raise ToolUnavailable(f"{name}: {folder / result.image} {error}") from None
        text = render(query, results, options)
        if wanted > options.max_images == len(results):
            text += f"\n\n[an answer has at most {options.max_images} images]"
        return text, tuple(images)

    return define(name, IMAGE_DESCRIPTION, SearchArguments, run, pure=True)


def _limits(options: SearchOptions) -> dict[str, Any]:
    """Tavily's deadline is behind its own: all attempts, the longest pauses between them, and half a minute for its rate limit."""
    if isinstance(options.provider, LocalOptions):
        return {}
    attempts = options.provider.attempts
    return {
        "deadline_s": attempts * options.provider.timeout_s
        + (attempts - 1) * MAX_RETRY_AFTER_S
        + 30
    }


SEARCH = ToolKind(SearchOptions, open_search, _limits)
IMAGE_SEARCH = ToolKind(ImageSearchOptions, open_image_search)
