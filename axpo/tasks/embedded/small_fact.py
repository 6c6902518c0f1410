"""Find the fact: the picture shows the number of a real wine, the rest is in the search index.

The wines are scikit-learn's (UCI, 178 of them); `wines.jsonl` beside this file is the corpus to
index. Every fifth wine is asked about in held-out questions only. An easy question asks for the
number itself and needs no tool.

    axpo index build axpo/tasks/embedded/wines.jsonl --out runs/wines.index
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from axpo.tasks.embedded.generated import Drawn, GeneratedConfig, picture_split
from axpo.tasks.embedded.numbers import DrawnNumbers, Number, NumberTask, draw_numbers
from axpo.tasks.embedded.pictures import COLOURS, Split
from axpo.tasks.task import Turns, tasks
from axpo.tasks.turns import calling_turn, final_turn
from rollout_workers.trajectory import Question
from tool_server.search.results import Caps, Result, render

CORPUS = Path(__file__).parent / "wines.jsonl"
# in mg/l
Property: TypeAlias = Literal["magnesium", "proline"]
FIRST = 1
"""The wine that a search without a number finds: all match it equally well, and then the order of
the corpus decides."""
KINDS = ("easy", "one hop", "two hops")
"""What `question.info["kind"]` says, by the number of hops."""


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

    def value(self, wanted: Property) -> int:
        """Return one of the properties."""
        return self.magnesium if wanted == "magnesium" else self.proline

    def found(self) -> str:
        """Return what `search` answers if it finds this wine alone."""
        result = Result(self.title, self.id, self.text, 0.0)
        return render("", [result], Caps())


class FactTeacherConfig(BaseModel):
    """The scripted SFT teacher: it thinks, then answers or searches, mostly in haste.

    Without a search it can only guess a fact. With care it searches for the wine by its number; in
    haste it searches for what is asked, and finds another wine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool_rate: float = Field(0.3, ge=0, le=1, description="share of traces that search")
    care: float = Field(
        0.17,
        ge=0,
        le=1,
        description="share of the calls that search by number; a question of two hops needs two",
    )


@tasks.register("small_fact")
class SmallFactConfig(GeneratedConfig):
    """Facts about a wine whose number is in a picture, for the tool `search`."""

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
    teacher: FactTeacherConfig = FactTeacherConfig()

    def load(self) -> SmallFact:
        """Return the task."""
        return SmallFact(self)


class SmallFact(NumberTask[SmallFactConfig]):
    """Questions, verifier and teacher of the task."""

    arguments_kind = "queries"

    def draw(self, split: str, index: int) -> DrawnNumbers:
        """Draw question number `index` of a split."""
        rng = random.Random(f"fact/{split}/{index}")
        # The second number is there to be told from the first one by its colour.
        number, other = rng.sample(shown(picture_split(split)), 2)
        colour, other_colour = rng.sample(sorted(COLOURS), 2)
        numbers = [Number(colour, number), Number(other_colour, other)]
        image = draw_numbers(numbers, rng, picture_split(split))
        hops = self._draw_hops(rng)
        wanted = rng.choice(self.config.properties)
        text, answer = _ask(wines()[number], colour, wanted, hops)
        question = Question(
            id=f"{split}-{index}",
            text=text,
            images=(image,),
            answer=str(answer),
            info={"kind": KINDS[hops], "wine": number, "wanted": wanted, "hops": hops},
        )
        return Drawn(question, numbers, rng)

    def demonstrate(self, drawn: DrawnNumbers) -> Turns:
        """Return the turns of the teacher at work."""
        info, rng = drawn.question.info, drawn.rng
        teacher = self.config.teacher
        if rng.random() >= teacher.tool_rate:
            return [_answer_at_once(drawn)]
        number = info["wine"]
        turns: Turns = []
        thought = f"It is wine {number}."
        # An easy question needs no search; a teacher who searches all the same does it once.
        for hop in range(max(1, info["hops"])):
            careful = rng.random() < teacher.care
            query = _careful_query(number) if careful else f"{info['wanted']} of the wine"
            found = wines()[number if careful else FIRST]
            turns += _search(thought, query, found)
            # The teacher sees that it found another wine, but does not search again.
            if found.number != number:
                return [*turns, final_turn("That is another wine.", "unknown")]
            if hop < info["hops"] - 1:
                number = found.like
                thought = f"It is most like wine {number}."
        turns.append(final_turn(f"I have found wine {number}.", drawn.question.answer))
        return turns

    def careful_arguments(self, drawn: DrawnNumbers) -> str:
        """Return the arguments of the call that a careful teacher would make, as JSON."""
        return _arguments(_careful_query(drawn.question.info["wine"]))

    def draw_results(self, index: int) -> tuple[Question, Turns]:
        """Draw careful searches for made-up wines with longer numbers than those of real ones.

        Each digit of the answer is a lesson in reading results.
        """
        rng = random.Random(f"fact/results/{index}")
        first, second, third = rng.sample(range(1, 1000), 3)
        wanted = rng.choice(self.config.properties)
        wine = _make_up(rng, first, second)
        like = _make_up(rng, second, third)
        thought = f"It is wine {wine.number}."
        turns = _search(thought, _careful_query(wine.number), wine)
        # Three of four lessons have one hop.
        if rng.random() < 0.75:
            found, of = wine, ""
        else:
            found, of = like, "the wine most like "
            thought = f"It is most like wine {like.number}."
            turns += _search(thought, _careful_query(like.number), like)
        question = Question(
            id=f"results-{index}",
            text=f"What is the {wanted} of {of}wine {wine.number}?",
            images=(),
            answer=str(found.value(wanted)),
        )
        turns.append(final_turn(f"I have found wine {found.number}.", question.answer))
        return question, turns

    def _draw_hops(self, rng: random.Random) -> int:
        if rng.random() < self.config.easy_share:
            return 0
        return 2 if rng.random() < self.config.two_hop_share else 1


def _ask(wine: Wine, colour: str, wanted: Property, hops: int) -> tuple[str, int]:
    """Return the text of a question and its answer."""
    if hops == 0:
        return f"What is the {colour} number?", wine.number
    if hops == 1:
        return f"What is the {wanted} of the {colour} wine?", wine.value(wanted)
    text = f"What is the {wanted} of the wine most like the {colour} wine?"
    return text, wines()[wine.like].value(wanted)


def _answer_at_once(drawn: DrawnNumbers) -> str:
    info = drawn.question.info
    if info["hops"] == 0:
        return final_turn("I can read it.", drawn.question.answer)
    # A guess is the property of any wine of training.
    guess = wines()[drawn.rng.choice(shown("train"))]
    thought = f"It is wine {info['wine']}. I guess."
    return final_turn(thought, str(guess.value(info["wanted"])))


def _make_up(rng: random.Random, number: int, like: int) -> Wine:
    magnesium = rng.randrange(10 ** rng.randint(2, 16))
    proline = rng.randrange(10 ** rng.randint(2, 16))
    # As the corpus says it.
    text = f"Wine {number}: magnesium {magnesium}, proline {proline}, most like wine {like}"
    return Wine(
        number=number,
        title=f"Wine {number}",
        id=f"wine-{number}",
        text=text,
        magnesium=magnesium,
        proline=proline,
        like=like,
    )


def _search(thought: str, query: str, found: Wine) -> Turns:
    """Return a turn that searches, and what the tool answers."""
    call = f'{{"name": "search", "arguments": {_arguments(query)}}}'
    turn = calling_turn(f"{thought} I search.", call)
    return [turn, (found.found(), ())]


def _careful_query(number: int) -> str:
    return f"wine {number}"


def _arguments(query: str) -> str:
    return json.dumps({"query": query, "max_results": 1})


@cache
def wines() -> dict[int, Wine]:
    """Return the wines of the corpus by number."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["number"]: Wine(**row) for row in rows}


@cache
def shown(split: Split) -> list[int]:
    """Return the numbers that the pictures of a split show.

    Every fifth wine belongs to the test split.
    """
    of_test = split == "test"
    return [number for number in wines() if (number % 5 == 0) == of_test]
