"""Multiply the numbers in a picture.

Real handwritten numbers are easily read, but a tiny model cannot form their product in its head;
`python` can. An easy question asks for one of the numbers itself and needs no tool, so answering
at once is often right.
"""

from __future__ import annotations

import json
import math
import random

from pydantic import BaseModel, ConfigDict, Field

from axpo.tasks.embedded.generated import Drawn, GeneratedConfig, picture_split
from axpo.tasks.embedded.numbers import DrawnNumbers, Number, NumberTask, draw_numbers
from axpo.tasks.embedded.pictures import COLOURS
from axpo.tasks.task import Turns, tasks
from axpo.tasks.turns import calling_turn, final_turn
from rollout_workers.trajectory import Question


class ProductTeacherConfig(BaseModel):
    """The scripted SFT teacher: it thinks, then answers in its head or calls `python`.

    In its head it finds a product only roughly. Most of its calls are hasty: it writes the
    expression at once, with one digit misread. With care it names the numbers first and then
    computes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool_rate: float = Field(0.3, ge=0, le=1, description="share of traces that call")
    care: float = Field(
        0.13,
        ge=0,
        le=1,
        description="share of the calls that name the numbers first, and are right",
    )


@tasks.register("small_product")
class SmallProductConfig(GeneratedConfig):
    """Products of handwritten numbers in a picture, for the tool `python`."""

    digits: int = Field(2, ge=2, le=4, description="digits of each number")
    easy_share: float = Field(
        0.5, ge=0, le=1, description="share of questions that ask for one of the numbers"
    )
    teacher: ProductTeacherConfig = ProductTeacherConfig()

    def load(self) -> SmallProduct:
        """Return the task."""
        return SmallProduct(self)


class SmallProduct(NumberTask[SmallProductConfig]):
    """Questions, verifier and teacher of the task."""

    arguments_kind = "codes"

    def draw(self, split: str, index: int) -> DrawnNumbers:
        """Draw question number `index` of a split."""
        rng = random.Random(f"product/{split}/{index}")
        easy = rng.random() < self.config.easy_share
        lowest = 10 ** (self.config.digits - 1)
        highest = 10 * lowest - 1
        colours = rng.sample(sorted(COLOURS), 2)
        numbers = [Number(colour, rng.randint(lowest, highest)) for colour in colours]
        image = draw_numbers(numbers, rng, picture_split(split))
        a, b = numbers
        if easy:
            text = f"What is the {a.colour} number?"
            answer = a.value
        else:
            text = f"What is the {a.colour} number times the {b.colour} number?"
            answer = a.value * b.value
        question = Question(
            id=f"{split}-{index}",
            text=text,
            images=(image,),
            answer=str(answer),
            info={"kind": "easy" if easy else "product"},
        )
        return Drawn(question, numbers, rng)

    def demonstrate(self, drawn: DrawnNumbers) -> Turns:
        """Return the turns of the teacher at work."""
        teacher, rng = self.config.teacher, drawn.rng
        if rng.random() >= teacher.tool_rate:
            return [self._answer_at_once(drawn)]
        if rng.random() < teacher.care:
            return _compute(self.careful_arguments(drawn), drawn.question.answer)
        values = [number.value for number in _asked(drawn)]
        code, printed = _hasty_code(values, rng)
        return _compute(json.dumps({"code": code}), printed)

    def careful_arguments(self, drawn: DrawnNumbers) -> str:
        """Return the arguments of the call that a careful teacher would make, as JSON."""
        asked = _asked(drawn)
        lines = [f"{number.colour} = {number.value}" for number in asked]
        product = " * ".join(number.colour for number in asked)
        lines.append(f"print({product})")
        return json.dumps({"code": "\n".join(lines)})

    def draw_results(self, index: int) -> tuple[Question, Turns]:
        """Draw a call that prints more digits than a product has.

        Each digit of the answer is a lesson in reading results.
        """
        rng = random.Random(f"product/results/{index}")
        length = rng.randint(3, 24)
        printed = "".join(rng.choices("0123456789", k=length))
        # The code holds none of the digits, so they can only be read in the result.
        question = Question(f"results-{index}", "Compute.", (), printed)
        return question, _compute('{"code": "print()"}', printed)

    def _answer_at_once(self, drawn: DrawnNumbers) -> str:
        if drawn.question.info["kind"] == "easy":
            return final_turn("I can read it.", drawn.question.answer)
        a, b = drawn.shown
        # Only the first digit of each number counts: 23 times 38 is 20 * 40.
        places = 1 - self.config.digits
        rough = round(a.value, places) * round(b.value, places)
        thought = f"I read {a} and {b}. I do it in my head."
        return final_turn(thought, str(rough))


def _asked(drawn: DrawnNumbers) -> list[Number]:
    """Return the numbers that the question is about."""
    if drawn.question.info["kind"] == "easy":
        return drawn.shown[:1]
    return drawn.shown


def _compute(arguments: str, printed: str) -> Turns:
    """Return the turns of a call of `python` and the answer that repeats what it printed."""
    call = f'{{"name": "python", "arguments": {arguments}}}'
    return [
        calling_turn("I compute it.", call),
        (printed, ()),
        final_turn("I have the result.", printed),
    ]


def _hasty_code(values: list[int], rng: random.Random) -> tuple[str, str]:
    """Return code in which one digit of one number is misread, and what it prints."""
    which = rng.randrange(len(values))
    digits = list(str(values[which]))
    place = rng.randrange(len(digits))
    # Never the digit itself, so a hasty call is always wrong; and no 0, because Python refuses a
    # number that begins with it.
    others = [digit for digit in "123456789" if digit != digits[place]]
    digits[place] = rng.choice(others)
    read = list(values)
    read[which] = int("".join(digits))
    product = " * ".join(str(value) for value in read)
    return f"print({product})", str(math.prod(read))
