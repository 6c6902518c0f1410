"""A tool of this project: type hints give its schema, the docstring its description."""

from typing import Literal

import numpy as np

from tool_server.tool import Pixels, ToolCall, ToolError

STRONGEST = {"red": 0, "green": 1, "blue": 2}


def keep_color(call: ToolCall, color: Literal["red", "green", "blue"], img_idx: int = 0) -> Pixels:
    """Show a picture with everything white that is not of one color.

    Args:
        call: the rollout's pictures so far; not part of what the policy reads.
        color: what stays.
        img_idx: which picture, counted from 0.
    """
    if not 0 <= img_idx < len(call.images):
        # ToolError is for what the policy got wrong: it reads the message, and may try again.
        raise ToolError(f"img_idx: there are {len(call.images)} pictures")
    picture = np.asarray(call.images[img_idx])
    rest = np.delete(picture, STRONGEST[color], axis=2).max(axis=2)
    strong = picture[..., STRONGEST[color]].astype(int) - rest > 64
    return np.where(strong[..., None], picture, np.uint8(255))
