"""Count what a micro-batch keeps on the device for its backward pass.

The formulas are of transformers' modules with an attention that keeps no scores (FlexAttention or
SDPA). `tests/axpo/test_memory.py` compares them with the tensors that autograd saves: they are
within a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

from axpo.memory.shapes import Shape, TextShape, VisionShape

FLOAT32 = 4
IMAGE_SHARE = 0.75
"""Share of a micro-batch's tokens that are an image's. With more there is no room left for the
text of the rollouts that share the image."""


@dataclass(frozen=True)
class Load:
    """One micro-batch, and how it is computed."""

    tokens: int
    patches: int  # that the vision tower reads
    width: int  # bytes of a number: 4 in float32, 2 in bfloat16
    checkpointing: bool
    vision_trains: bool  # if not (adapters), the vision tower keeps nothing


def load_of(
    shape: Shape, tokens: int, width: int, *, checkpointing: bool, vision_trains: bool
) -> Load:
    """Return the micro-batch of so many tokens, `IMAGE_SHARE` of them an image's."""
    patches = int(IMAGE_SHARE * tokens) * shape.vision.merge**2
    return Load(tokens, patches, width, checkpointing, vision_trains)


def text_bytes(text: TextShape, load: Load) -> int:
    """Return what the language model keeps."""
    layer = load.tokens * _text_layer(text, load.width)
    # Embeddings, the image features that are written into them, and what the last norm keeps.
    ends = load.tokens * text.hidden * (FLOAT32 + 4 * load.width)
    if not load.checkpointing:
        return text.layers * layer + ends
    # Of each layer only its input; one layer at a time is computed again.
    inputs = text.layers * load.tokens * text.hidden * load.width
    return inputs + layer + ends


def vision_bytes(vision: VisionShape, load: Load) -> int:
    """Return what the vision tower keeps, with the pixels that it reads."""
    block = load.patches * _vision_block(vision, load.width)
    # Pixels come in float32.
    pixels = load.patches * vision.patch_values * FLOAT32
    if not load.vision_trains:
        return pixels + block
    if load.width < FLOAT32:
        pixels += load.patches * vision.patch_values * load.width
    # Mergers are never computed again.
    ends = pixels + load.patches * _mergers(vision, load.width)
    if not load.checkpointing:
        return vision.depth * block + ends
    inputs = vision.depth * load.patches * vision.hidden * load.width
    return inputs + block + ends


def _text_layer(text: TextShape, width: int) -> int:
    """Return the bytes that a decoder layer keeps for each token."""
    norms = 2 * _rms_norm(text.hidden, width)
    if text.normed_heads:
        norms += (text.attention + text.kv) * (FLOAT32 + width)
    # Queries, keys and values; the output of attention twice, as its own and as o_proj's input.
    attention = (3 * text.attention + 2 * text.kv) * width
    return norms + attention + _gated_mlp(text.intermediate, width)


def _vision_block(vision: VisionShape, width: int) -> int:
    """Return the bytes that a block of the vision tower keeps for each patch."""
    # Queries, keys and values in one tensor, queries and keys again with their positions, and the
    # output twice.
    attention = 7 * vision.hidden * width
    if vision.like_text:
        norms = 2 * _rms_norm(vision.hidden, width)
        return norms + attention + _gated_mlp(vision.intermediate, width)
    # Input and output of each LayerNorm, and what goes into GELU and comes out of it.
    norms = 4 * vision.hidden * width
    return norms + attention + 2 * vision.intermediate * width


def _mergers(vision: VisionShape, width: int) -> int:
    """Return the bytes that all mergers keep for each patch."""
    # The norm's input and output, what goes into GELU and comes out of it, and a share of a token.
    inside = 4 * vision.hidden * width + vision.out * width // vision.merge**2
    return vision.mergers * inside


def _rms_norm(hidden: int, width: int) -> int:
    """Return the bytes of a norm: its input in float32, and its output before and after scaling."""
    return hidden * (FLOAT32 + 2 * width)


def _gated_mlp(intermediate: int, width: int) -> int:
    """Return the bytes of a gated MLP: gate, activated gate, the other half, their product."""
    return 4 * intermediate * width
