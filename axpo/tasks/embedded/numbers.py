"""Ask about numbers in a picture: what `small_product` and `small_fact` share.

The numbers are real handwritten digits, large enough to be read in the whole view, side by side in
coloured frames.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from axpo.tasks.embedded.generated import Config, Drawn, Generated
from axpo.tasks.embedded.pictures import Frame, Split, handwriting, paste, photograph
from axpo.tasks.task import Example, Turns
from axpo.tasks.turns import lesson_turn
from rollout_workers.trajectory import Pixels, Question

SCENE = 384
CELL = SCENE // 4
"""Each digit fills one cell of a 4x4 grid: at the demo's 128-pixel view, one token of the vision
encoder."""
BORDER = 12


@dataclass(frozen=True)
class Number:
    """A number and the colour of its frames."""

    colour: str
    value: int

    def __str__(self) -> str:
        return f"{self.colour} {self.value}"


DrawnNumbers: TypeAlias = Drawn[list[Number]]
"""A question about numbers, and the numbers that its picture shows: the first is asked for."""


class NumberTask(Generated[Config, list[Number]]):
    """A task about numbers in a picture, with the examples that teach its tool.

    The kinds of examples:

        demonstration      the teacher at work
        numbers            read a picture
        results            read what a call returns
        (arguments_kind)   write the arguments of a careful call
    """

    arguments_kind: ClassVar[str]
    """What `sft.stages[].mix` calls the examples that teach to write arguments."""

    def example(self, kind: str, index: int) -> Example:
        """Return an example of one kind.

        Lessons in writing arguments show the prompt of calls; those in reading a picture or a
        result show a bare prompt.

        Raises:
            KeyError: there is no such kind.
        """
        if kind == "results":
            question, turns = self.draw_results(index)
            return Example(question, turns, with_tools=False)
        if kind == "demonstration":
            drawn = self.draw("sft", index)
            return Example(drawn.question, self.demonstrate(drawn), with_tools=True)
        if kind == "numbers":
            drawn = self.draw(kind, index)
            words = " ".join(map(str, drawn.shown))
            return _lesson(drawn, "Read all.", words, with_tools=False)
        if kind == self.arguments_kind:
            drawn = self.draw(kind, index)
            words = self.careful_arguments(drawn)
            return _lesson(drawn, drawn.question.text, words, with_tools=True)
        raise KeyError(kind)

    @abstractmethod
    def demonstrate(self, drawn: DrawnNumbers) -> Turns:
        """Return the turns of the teacher at work."""

    @abstractmethod
    def careful_arguments(self, drawn: DrawnNumbers) -> str:
        """Return the arguments of the call that a careful teacher would make, as JSON."""

    @abstractmethod
    def draw_results(self, index: int) -> tuple[Question, Turns]:
        """Draw a lesson in reading what a call returns."""


def draw_numbers(numbers: list[Number], rng: random.Random, split: Split) -> Pixels:
    """Return a photograph with at most four numbers of at most four digits, one in a row."""
    canvas = photograph(SCENE, rng)
    rows = rng.sample(range(4), len(numbers))
    for number, row in zip(numbers, rows, strict=True):
        digits = str(number.value)
        # A short number may begin anywhere in its row.
        first_column = rng.randint(0, 4 - len(digits))
        for column, digit in enumerate(digits, first_column):
            written = handwriting(split, rng, int(digit))
            frame = Frame(
                colour=number.colour,
                digit=written.digit,
                left=CELL * column,
                top=CELL * row,
                side=CELL,
                border=BORDER,
            )
            paste(canvas, frame, written.ink)
    return np.asarray(canvas)


def _lesson(drawn: DrawnNumbers, text: str, words: str, *, with_tools: bool) -> Example:
    question = Question(drawn.question.id, text, drawn.question.images, "")
    return Example(question, [lesson_turn(words)], with_tools)
