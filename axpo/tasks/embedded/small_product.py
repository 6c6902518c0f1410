"""Multiply the numbers: real handwritten numbers that are easily read, and products that a tiny model cannot form in its head.

`python` can. An easy question, one of the numbers itself, needs no tool, so that answering at once is often right. Every question is a pure
function of (split, index).
"""

from __future__ import annotations

import json
import math
import random

from pydantic import BaseModel, ConfigDict, Field

from axpo.tasks.embedded.generated import Generated
from axpo.tasks.embedded.numbers import Number, draw_numbers
from axpo.tasks.embedded.small_digit import COLOURS, calling_turn, final_turn
from axpo.tasks.task import TaskConfig, Turns, tasks
from rollout_workers.trajectory import Question


class ProductTeacherConfig(BaseModel):
    """The scripted SFT teacher: thinks, then answers in its head (a product only roughly) or calls `python`, mostly in haste.

    With care it names the numbers first and then computes; in haste it writes the expression at once, with one digit misread.
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
class SmallProductConfig(TaskConfig):
    """Difficulty of the task."""

    digits: int = Field(2, ge=2, le=4, description="digits of each number")
    easy_share: float = Field(
        0.5, ge=0, le=1, description="share of questions that ask for one of the numbers"
    )
    held_out: int = Field(256, ge=1, description="number of held-out questions")
    teacher: ProductTeacherConfig = ProductTeacherConfig()

    def check_inputs(self) -> None:
        """Nothing to read: digits and photographs come with scikit-learn."""

    def load(self) -> SmallProduct:
        """The task."""
        return SmallProduct(self)


class SmallProduct(Generated[SmallProductConfig]):
    """Questions, verifier and teacher of the task."""

    def example(self, kind: str, index: int) -> tuple[Question, Turns, bool]:
        """`demonstration` is the teacher at work; `codes` teaches to write a careful call's arguments, under the prompt of calls; with a
        bare prompt `numbers` teaches to read a picture, and `results` what a call prints. Raises KeyError for another kind."""
        if kind not in ("demonstration", "numbers", "codes", "results"):
            raise KeyError(kind)
        if kind == "results":
            return *_results(random.Random(f"product/results/{index}"), index), False
        question, numbers, rng = self._question("sft" if kind == "demonstration" else kind, index)
        if kind == "demonstration":
            return question, self._teach(question, numbers, rng), True
        words = _careful(question, numbers) if kind == "codes" else " ".join(map(str, numbers))
        text = question.text if kind == "codes" else "Read all."
        return (
            Question(question.id, text, question.images, ""),
            [words + "\n</think>\n\nDone.<|im_end|>"],
            kind == "codes",
        )

    def _question(self, split: str, index: int) -> tuple[Question, list[Number], random.Random]:
        rng = random.Random(f"product/{split}/{index}")
        easy = rng.random() < self.config.easy_share
        lowest, highest = 10 ** (self.config.digits - 1), 10**self.config.digits - 1
        numbers = [
            Number(colour, rng.randint(lowest, highest))
            for colour in rng.sample(sorted(COLOURS), 2)
        ]
        image = draw_numbers(numbers, rng, "test" if split == "test" else "train")
        a, b = numbers
        text = (
            f"What is the {a.colour} number?"
            if easy
            else f"What is the {a.colour} number times the {b.colour} number?"
        )
        answer = a.value if easy else a.value * b.value
        return (
            Question(
                f"{split}-{index}",
                text,
                (image,),
                str(answer),
                {"kind": "easy" if easy else "product"},
            ),
            numbers,
            rng,
        )

    def _teach(self, question: Question, numbers: list[Number], rng: random.Random) -> Turns:
        teacher, (a, b) = self.config.teacher, numbers
        easy = question.info["kind"] == "easy"
        if rng.random() >= teacher.tool_rate:
            if easy:
                return [final_turn("I can read it.", question.answer)]
            rough = round(a.value, 1 - self.config.digits) * round(b.value, 1 - self.config.digits)
            return [final_turn(f"I read {a} and {b}. I do it in my head.", str(rough))]
        careful = rng.random() < teacher.care
        if careful:
            arguments, result = _careful(question, numbers), question.answer
        else:
            code, result = _hasty([a.value] if easy else [a.value, b.value], rng)
            arguments = json.dumps({"code": code})
        return _computing(arguments, result)


def _results(rng: random.Random, index: int) -> tuple[Question, Turns]:
    """A call that prints more digits than a product has: each is a lesson in reading results."""
    printed = "".join(rng.choices("0123456789", k=rng.randint(3, 24)))
    return Question(f"results-{index}", "Compute.", (), printed), _computing(
        '{"code": "print()"}', printed
    )


def _computing(arguments: str, result: str) -> Turns:
    call = f'{{"name": "python", "arguments": {arguments}}}'
    return [
        calling_turn("I compute it.", call),
        (result, ()),
        final_turn("I have the result.", result),
    ]


def _careful(question: Question, numbers: list[Number]) -> str:
    needed = numbers[:1] if question.info["kind"] == "easy" else numbers
    lines = [f"{number.colour} = {number.value}" for number in needed]
    return json.dumps(
        {"code": "\n".join([*lines, f"print({' * '.join(number.colour for number in needed)})"])}
    )


def _hasty(numbers: list[int], rng: random.Random) -> tuple[str, str]:
    """The code and what it prints: one digit of one number is another one."""
    which = rng.randrange(len(numbers))
    digits = list(str(numbers[which]))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([d for d in "123456789" if d != digits[place]])
    read = [int("".join(digits)) if i == which else number for i, number in enumerate(numbers)]
    return f"print({' * '.join(map(str, read))})", str(math.prod(read))
