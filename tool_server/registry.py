"""The kinds of tools that a recipe can offer, by name."""

from __future__ import annotations

from tool_server.python import PYTHON
from tool_server.search.tools import IMAGE_SEARCH, SEARCH
from tool_server.tool import ToolKind
from tool_server.zoom import IMAGE_ZOOM_IN

KINDS: dict[str, ToolKind] = {
    "image_zoom_in": IMAGE_ZOOM_IN,
    "python": PYTHON,
    "search": SEARCH,
    "image_search": IMAGE_SEARCH,
}
