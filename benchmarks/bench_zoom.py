"""Zoom of a 4K image against Pillow's own crop and resize of the same pixels to the same size."""

from __future__ import annotations

import json
import statistics

import numpy as np
from PIL import Image

from benchmarks.result import Entry, at_most
from benchmarks.timing import interleaved
from tool_server.tool import ToolCall
from tool_server.zoom import ImageZoomIn, pixel_box

REPETITIONS = 40
WIDTH, HEIGHT = 3840, 2160


def measure() -> list[Entry]:
    """Return the entry `zoom_vs_pillow`.

    The tool starts from an array and returns one; Pillow starts from its own image and keeps it.
    """
    kind = ImageZoomIn(max_side=1024)
    tool = kind.open("image_zoom_in")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image = Image.fromarray(pixels)
    call = ToolCall(tool.parse({"bbox_2d": [100, 100, 900, 900]}), [pixels])
    box = pixel_box(call.arguments.bbox_2d, WIDTH, HEIGHT, kind)
    _, (out,) = tool.run(call)  # type: ignore[misc]
    size = (out.shape[1], out.shape[0])

    def crop_and_resize() -> Image.Image:
        return image.crop(box).resize(size, Image.Resampling.LANCZOS)

    # What is compared must be the same work.
    if not np.array_equal(out, np.asarray(crop_and_resize())):
        raise AssertionError("the tool and Pillow disagree")
    timed = interleaved(REPETITIONS, zoom=lambda: tool.run(call), pillow=crop_and_resize)
    zoom_ms = statistics.median(timed["zoom"]) * 1e3
    pillow_ms = statistics.median(timed["pillow"]) * 1e3
    detail = (
        f"{WIDTH}x{HEIGHT}, crop {box[2] - box[0]}x{box[3] - box[1]} to {size[0]}x{size[1]}, "
        f"Lanczos: {zoom_ms:.1f} ms against {pillow_ms:.1f} ms, "
        f"medians of {REPETITIONS} interleaved"
    )
    return [at_most("zoom_vs_pillow", round(zoom_ms / pillow_ms, 3), 1.3, "ratio", detail)]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
