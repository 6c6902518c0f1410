"""A Python function as a tool: its type hints give the schema, its docstring the description."""

import numpy as np
from PIL import Image, ImageOps

from tool_server.tool import Pixels, ToolCall, ToolError


def invert(call: ToolCall, img_idx: int = 0) -> Pixels:
    """Show a picture with its colors inverted.

    Args:
        call: the rollout's pictures so far; not part of what the policy reads.
        img_idx: which picture, counted from 0.
    """
    if not 0 <= img_idx < len(call.images):
        # ToolError is for what the policy got wrong: it reads the message, and may try again.
        raise ToolError(f"img_idx: there are {len(call.images)} pictures")
    picture = Image.fromarray(call.images[img_idx])
    return np.asarray(ImageOps.invert(picture))
