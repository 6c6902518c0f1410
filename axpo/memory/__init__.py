"""Estimate how much memory a recipe takes, before anything starts.

May import `axpo.config` and the settings of the engine rooms. Start reading in `recipe.py`: it
says what is counted. `shapes.py` reads from a model's configuration the numbers that memory depends
on, `activations.py` counts what a micro-batch keeps for its backward pass.
"""

from axpo.memory.recipe import estimate
from axpo.memory.shapes import Shape, read_config, shape_of

__all__ = ["Shape", "estimate", "read_config", "shape_of"]
