"""Numbers in a picture: real handwritten digits, large enough to be read in the whole view, side by side in coloured frames."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np

from axpo.tasks.embedded.small_digit import paste, photograph
from rollout_workers.trajectory import Pixels

SCENE = 384
CELL = SCENE // 4
"""Each digit fills one cell of a 4x4 grid: at the demo's 128-pixel view, one token of the vision encoder."""


@dataclass(frozen=True)
class Number:
    colour: str
    value: int

    def __str__(self) -> str:
        return f"{self.colour} {self.value}"


def draw_numbers(
    numbers: list[Number], rng: random.Random, split: Literal["train", "test"]
) -> Pixels:
    """A photograph with at most four numbers of at most four digits, each on a row of its own."""
    canvas = photograph(SCENE, rng)
    for number, row in zip(numbers, rng.sample(range(4), len(numbers)), strict=True):
        digits = str(number.value)
        column = rng.randint(0, 4 - len(digits))
        for place, digit in enumerate(digits, column):
            paste(canvas, rng, number.colour, CELL * place, CELL * row, CELL, 12, split, int(digit))
    return np.asarray(canvas)
