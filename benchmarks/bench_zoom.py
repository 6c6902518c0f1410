"""Zoom of a 4K image against Pillow's own crop and resize of the same pixels to the same size."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import interleaved
from tool_server.tool import ToolCall
from tool_server.zoom import ImageZoomIn, pixel_box

REPETITIONS = 40


def measure() -> list[dict[str, Any]]:
    """Entry `zoom_vs_pillow`. The tool starts from an array and returns one; Pillow starts from its own image and keeps it."""
    options = ImageZoomIn(max_side=1024)
    tool = options.open("image_zoom_in")
    pixels = np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8)
    image = Image.fromarray(pixels)
    call = ToolCall(tool.parse({"bbox_2d": [100, 100, 900, 900]}), [pixels])
    box = pixel_box(call.arguments.bbox_2d, 3840, 2160, options)
    _, (out,) = tool.run(call)  # type: ignore[misc]
    size = (out.shape[1], out.shape[0])
    if not np.array_equal(out, np.asarray(image.crop(box).resize(size, Image.Resampling.LANCZOS))):
        raise AssertionError("the tool and Pillow disagree")
    timed = interleaved(
        REPETITIONS,
        zoom=lambda: tool.run(call),
        pillow=lambda: image.crop(box).resize(size, Image.Resampling.LANCZOS),
    )
    zoom_ms, pillow_ms = (statistics.median(seconds) * 1e3 for seconds in timed.values())
    return [
        {
            "name": "zoom_vs_pillow",
            "value": round(zoom_ms / pillow_ms, 3),
            "target": 1.3,
            "better": "lower",
            "unit": "ratio",
            "detail": f"3840x2160, crop {box[2] - box[0]}x{box[3] - box[1]} to {size[0]}x{size[1]}, Lanczos: "
            f"{zoom_ms:.1f} ms against {pillow_ms:.1f} ms, medians of {REPETITIONS} interleaved",
        }
    ]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
