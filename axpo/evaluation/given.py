"""Search by a question's picture over results that come with a benchmark.

The search benchmarks bring what a reverse image search had found when they were made. So every
sample, and every model, sees the same. The results of a question are written when its picture is
decoded, under the digest of its pixels, and the tool finds them by the picture of its call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from axpo.record.records import ImageFolder
from rollout_workers.images import digest_of
from rollout_workers.trajectory import LazyImage, Pixels, UnusableQuestion
from tool_server.arguments import define
from tool_server.images import fit
from tool_server.tool import Output, Shown, Tool, ToolCall, ToolError, ToolKind

NAME = "image_search"
"""What the policy calls the tool."""

KIND = "axpo.evaluation.given:GivenResults"
"""How a recipe names it."""

Result = tuple[str, LazyImage | None]
"""A title, and the picture that was found; either may be missing."""


class NoArguments(BaseModel):
    """The tool takes none: it searches by the picture of the question."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_SHOWN = Shown(
    "Search the web by the image of the question. Returns titles and images that were found.",
    NoArguments,
)


class GivenResults(ToolKind):
    """Search by the question's picture, over the results that a benchmark brings."""

    folder: str = Field(min_length=1, description="where an evaluation writes the results")
    max_results: int = Field(5, ge=1, description="of one answer")
    max_side: int = Field(1024, ge=32, description="pixels; larger images are downscaled")

    def open(self, name: str) -> Tool:
        """Return the tool."""
        return define(name, *_SHOWN, self._found, pure=True)

    def shown(self) -> Shown:
        """Return what the policy reads."""
        return _SHOWN

    def _found(self, call: ToolCall) -> Output:
        if not call.images:
            raise ToolError("the question has no image to search by")
        file = _file(Path(self.folder), call.images[0])
        if not file.is_file():
            return "No results.", ()
        results = json.loads(file.read_text(encoding="utf-8"))[: self.max_results]
        images = ImageFolder(Path(self.folder))
        lines = [f"{number}. {title}".rstrip() for number, (title, _) in enumerate(results, 1)]
        found = [images.load(name) for _, name in results if name]
        return "\n".join(lines), tuple(fit(image, self.max_side, None) for image in found)


def keep(folder: Path, pixels: Pixels, results: Sequence[Result]) -> None:
    """Write the results of a question under the digest of its picture.

    A result whose picture cannot be read is kept without it.
    """
    images = ImageFolder(folder)
    kept = [(title, _saved(images, image)) for title, image in results]
    file = _file(folder, pixels)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(kept), encoding="utf-8")
    os.replace(temporary, file)


def _saved(images: ImageFolder, image: LazyImage | None) -> str | None:
    if image is None:
        return None
    try:
        return images.save(image.read())
    except UnusableQuestion:
        return None


def _file(folder: Path, pixels: Pixels) -> Path:
    return folder / f"{digest_of(pixels)}.json"
