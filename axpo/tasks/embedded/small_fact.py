"""Find the fact: the number of a real wine is in the picture, what is known of it is in the search index alone.

The wines are scikit-learn's (UCI, 178 of them); `wines.jsonl` beside this file is the corpus to index. Every fifth wine is asked about in
held-out questions only. An easy question, the number itself, needs no tool. Every question is a pure function of (split, index).

    axpo index build axpo/tasks/wines.jsonl --out runs/wines.index
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from axpo.tasks.embedded.generated import Generated
from axpo.tasks.embedded.numbers import Number, draw_numbers
from axpo.tasks.embedded.small_digit import COLOURS, calling_turn, final_turn
from axpo.tasks.task import TaskConfig, Turns, tasks
from rollout_workers.trajectory import Question
from tool_server.search.results import Caps, Result, render

CORPUS = Path(__file__).parent / "wines.jsonl"
Property = Literal["magnesium", "proline"]  # mg/l
FIRST = 1
"""The wine that a search without a number finds: all are alike for it, and ties go in the order of the corpus."""


@dataclass(frozen=True)
class Wine:
    """A document of the corpus."""

    number: int
    title: str
    id: str
    text: str
    magnesium: int
    proline: int
    like: int  # number of the nearest other wine, over all 13 properties in standard deviations

    def found(self) -> str:
        """What `search` answers where it finds this wine alone."""
        return render("", [Result(self.title, self.id, self.text, 0.0)], Caps())


class FactTeacherConfig(BaseModel):
    """The scripted SFT teacher: thinks, then answers (a fact only by guessing) or searches, mostly in haste.

    With care it searches for the wine by its number; in haste for what is asked, and finds another wine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool_rate: float = Field(0.3, ge=0, le=1, description="share of traces that search")
    care: float = Field(
        0.17,
        ge=0,
        le=1,
        description="share of the calls that search by number; a question of two hops needs two of them",
    )


@tasks.register("small_fact")
class SmallFactConfig(TaskConfig):
    """Difficulty of the task."""

    easy_share: float = Field(
        0.4, ge=0, le=1, description="share of questions that ask for a number in the picture"
    )
    two_hop_share: float = Field(
        0.4,
        ge=0,
        le=1,
        description="of the others, share that ask about the wine most like the one shown",
    )
    properties: tuple[Property, ...] = Field(
        ("magnesium", "proline"),
        min_length=1,
        description="what the others ask about, one of them each",
    )
    held_out: int = Field(256, ge=1, description="number of held-out questions")
    teacher: FactTeacherConfig = FactTeacherConfig()

    def check_inputs(self) -> None:
        """Nothing to read but what comes along. The index is the tool's, which does not start without it."""

    def load(self) -> SmallFact:
        """The task."""
        return SmallFact(self)


class SmallFact(Generated[SmallFactConfig]):
    """Questions, verifier and teacher of the task."""

    def example(self, kind: str, index: int) -> tuple[Question, Turns, bool]:
        """`demonstration` is the teacher at work; `queries` teaches to write a careful call's arguments, under the prompt of calls; with a
        bare prompt `numbers` teaches to read a picture, and `results` what a search finds. Raises KeyError for another kind."""
        if kind not in ("demonstration", "numbers", "queries", "results"):
            raise KeyError(kind)
        if kind == "results":
            return *_results(
                random.Random(f"fact/results/{index}"), index, self.config.properties
            ), False
        question, numbers, rng = self._question("sft" if kind == "demonstration" else kind, index)
        if kind == "demonstration":
            return question, self._teach(question, rng), True
        words = (
            _arguments(_careful(question.info["wine"]))
            if kind == "queries"
            else " ".join(map(str, numbers))
        )
        text = question.text if kind == "queries" else "Read all."
        return (
            Question(question.id, text, question.images, ""),
            [words + "\n</think>\n\nDone.<|im_end|>"],
            kind == "queries",
        )

    def _question(self, split: str, index: int) -> tuple[Question, list[Number], random.Random]:
        rng = random.Random(f"fact/{split}/{index}")
        asked, other = (
            wines()[number]
            for number in rng.sample(shown("test" if split == "test" else "train"), 2)
        )
        numbers = [
            Number(colour, wine.number)
            for colour, wine in zip(rng.sample(sorted(COLOURS), 2), (asked, other), strict=True)
        ]
        image = draw_numbers(numbers, rng, "test" if split == "test" else "train")
        hops = (
            0
            if rng.random() < self.config.easy_share
            else 2
            if rng.random() < self.config.two_hop_share
            else 1
        )
        wanted, colour = rng.choice(self.config.properties), numbers[0].colour
        if hops == 0:
            text, answer = f"What is the {colour} number?", asked.number
        elif hops == 1:
            text, answer = f"What is the {wanted} of the {colour} wine?", getattr(asked, wanted)
        else:
            text, answer = (
                f"What is the {wanted} of the wine most like the {colour} wine?",
                getattr(wines()[asked.like], wanted),
            )
        info = {
            "kind": ("easy", "one hop", "two hops")[hops],
            "wine": asked.number,
            "wanted": wanted,
            "hops": hops,
        }
        return Question(f"{split}-{index}", text, (image,), str(answer), info), numbers, rng

    def _teach(self, question: Question, rng: random.Random) -> Turns:
        teacher, number, hops, wanted = (
            self.config.teacher,
            *(question.info[name] for name in ("wine", "hops", "wanted")),
        )
        if rng.random() >= teacher.tool_rate:
            if hops == 0:
                return [final_turn("I can read it.", question.answer)]
            return [
                final_turn(
                    f"It is wine {number}. I guess.",
                    str(getattr(wines()[rng.choice(shown("train"))], wanted)),
                )
            ]
        turns: Turns = []
        thought = f"It is wine {number}."
        for hop in range(max(1, hops)):
            careful = rng.random() < teacher.care
            found = wines()[number if careful else FIRST]
            query = _careful(number) if careful else f"{wanted} of the wine"
            turns += _searching(thought, query, found)
            if found.number != number:
                return [*turns, final_turn("That is another wine.", "unknown")]
            if hop < hops - 1:
                number = found.like
                thought = f"It is most like wine {number}."
        return [*turns, final_turn(f"I have found wine {number}.", question.answer)]


def _results(
    rng: random.Random, index: int, properties: Sequence[Property]
) -> tuple[Question, Turns]:
    """Careful searches for made-up wines with longer numbers than real ones: each digit of an answer is a lesson in reading results."""
    numbers, wanted = rng.sample(range(1, 1000), 3), rng.choice(properties)
    asked, like = (_made_up(rng, number, other) for number, other in pairwise(numbers))
    turns = _searching(f"It is wine {asked.number}.", _careful(asked.number), asked)
    one_hop = rng.random() < 0.75
    found, of = (asked, "") if one_hop else (like, "the wine most like ")
    if not one_hop:
        turns += _searching(f"It is most like wine {like.number}.", _careful(like.number), like)
    question = Question(
        f"results-{index}",
        f"What is the {wanted} of {of}wine {asked.number}?",
        (),
        str(getattr(found, wanted)),
    )
    return question, [*turns, final_turn(f"I have found wine {found.number}.", question.answer)]


def _made_up(rng: random.Random, number: int, like: int) -> Wine:
    magnesium, proline = (rng.randrange(10 ** rng.randint(2, 16)) for _ in range(2))
    text = f"Wine {number}: magnesium {magnesium}, proline {proline}, most like wine {like}"
    return Wine(number, f"Wine {number}", f"wine-{number}", text, magnesium, proline, like)


def _searching(thought: str, query: str, found: Wine) -> Turns:
    call = f'{{"name": "search", "arguments": {_arguments(query)}}}'
    return [calling_turn(f"{thought} I search.", call), (found.found(), ())]


def _careful(number: int) -> str:
    return f"wine {number}"


def _arguments(query: str) -> str:
    return json.dumps({"query": query, "max_results": 1})


@cache
def wines() -> dict[int, Wine]:
    """Number -> wine, from the corpus."""
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return {row["number"]: Wine(**row) for row in rows}


@cache
def shown(split: Literal["train", "test"]) -> list[int]:
    """Numbers that the pictures of a split show; every fifth belongs to the test split."""
    return [number for number in wines() if (number % 5 == 0) == (split == "test")]
