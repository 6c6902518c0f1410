"""Read the small digit: real handwritten digits, small in coloured frames in real photographs.

The policy sees the whole scene scaled down, so a digit is only partly legible; `image_zoom_in`
crops the original. How far it is scaled is the model's: the embedded one sees at most 128 x 128
pixels, a real one what the recipe's `images.max_pixels` says. Pictures are drawn in `scenes.py` and
`pictures.py`, demonstrations are written in `zoom_teacher.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from axpo.tasks.embedded.generated import Drawn, Generated, GeneratedConfig, picture_split
from axpo.tasks.embedded.pictures import COLOURS, Frame, Span, crop, handwriting, paste
from axpo.tasks.embedded.scenes import Layout, Scene, by_colour, draw_background, draw_scene
from axpo.tasks.embedded.zoom_teacher import Teacher, TeacherConfig
from axpo.tasks.task import Example, tasks
from axpo.tasks.turns import lesson_turn
from rollout_workers.image_rule import ImageRule
from rollout_workers.trajectory import Pixels, Question

_CELL_NAMES = "abcdefghijklmnop"

Described: TypeAlias = tuple[Pixels, str]
"""A picture, and the words that say what it shows."""


@tasks.register("small_digit")
class SmallDigitConfig(GeneratedConfig):
    """Small handwritten digits in photographs, for the tool `image_zoom_in`.

    All sizes are in pixels of the original scene.
    """

    scene: int = Field(256, ge=128, le=4096, description="side of a scene")
    digit: int = Field(
        22, ge=8, description="side of a digit; half of it is seen at the demo's 128-pixel view"
    )
    border: int = Field(5, ge=1, description="width of the coloured frame")
    grid: int | None = Field(
        None,
        ge=2,
        description="frames lie in the cells of a grid with so many a side. 8: inside one token "
        "of the embedded model's vision encoder, in the whole view and in a crop of a sixteenth "
        "of it; None: anywhere",
    )
    frames: Span = Field((2, 3), description="fewest and most frames in a scene")
    larger_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share that asks for the larger of two digits, of the scenes that have two",
    )
    control_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of questions that ask how many frames there are, which a zoom does not "
        "help to see",
    )
    small_sheets: bool = Field(
        False, description="SFT sheets show frames of a scene's size instead of large ones"
    )
    teacher: TeacherConfig = TeacherConfig()

    @model_validator(mode="after")
    def _fits(self) -> SmallDigitConfig:
        outer = self.layout.frame
        # Without a grid, frames up to a third of the scene leave room beside each other.
        cell = self.scene // (self.grid or 3)
        if outer > cell:
            raise ValueError(
                f"digit={self.digit}: with its frame {outer} pixels wide, "
                f"which does not fit into {cell}"
            )
        return self

    @property
    def layout(self) -> Layout:
        """Return how scenes are laid out."""
        return Layout(self.scene, self.digit, self.border, self.grid)

    def remarks(self, rule: ImageRule) -> list[str]:
        """Say if a zoom shows a digit no larger than the whole view does."""
        view = self.digit * _scale(rule, self.scene)
        zoom = self.digit * _scale(rule, self.scene * self.teacher.box // 1000)
        if zoom > view:
            return []
        return [
            f"{self.label}: the model sees a digit of {self.digit} pixels with {view:.0f} in the "
            f"whole view and with {zoom:.0f} in a zoom, so the tool shows nothing new; "
            f"images.max_pixels must be well below {self.scene} x {self.scene} = {self.scene**2}"
        ]

    def load(self) -> SmallDigit:
        """Return the task."""
        return SmallDigit(self)


class SmallDigit(Generated[SmallDigitConfig, Scene]):
    """Questions, verifier and teacher of the task."""

    def __init__(self, config: SmallDigitConfig) -> None:
        super().__init__(config)
        self._teacher = Teacher(config.teacher, config.scene)

    def draw(self, split: str, index: int) -> Drawn[Scene]:
        """Draw question number `index` of a split."""
        config = self.config
        rng = random.Random(f"{split}/{index}")
        scene = draw_scene(config.layout, config.frames, rng, picture_split(split))
        # A scene with a single frame has no larger digit.
        larger = rng.random() < config.larger_share and len(scene.frames) > 1
        asked = rng.sample(scene.frames, 2 if larger else 1)
        # A source of its own: whatever the share, the other questions stay what they are.
        other_rng = random.Random(f"control/{split}/{index}")
        if other_rng.random() < config.control_share:
            asked = []
        kind, text, answer = _ask(scene, asked)
        boxes = {f.colour: list(self._teacher.careful_zoom(f).box) for f in scene.frames}
        question = Question(
            id=f"{split}-{index}",
            text=text,
            images=(scene.image,),
            answer=str(answer),
            info={"kind": kind, "asked": [frame.colour for frame in asked], "boxes": boxes},
        )
        return Drawn(question, scene, rng)

    def example(self, kind: str, index: int) -> Example:
        """Return an SFT example: `demonstration` is the teacher at work, `LESSONS` teach the eye.

        Raises:
            KeyError: there is no such kind.
        """
        if kind == "demonstration":
            return self._demonstrate(index)
        lesson = LESSONS[kind]
        rng = random.Random(f"{kind}/{index}")
        image, words = lesson.draw(self, rng)
        question = Question(f"{kind}-{index}", lesson.text, (image,), answer="")
        turn = lesson_turn(words or "none")
        return Example(question, [turn], lesson.with_tools)

    def draw_sheet(self, rng: random.Random) -> Described:
        """Draw a photograph under a grid of 4 x 4, a framed digit in each cell.

        So one look holds many lessons.
        """
        canvas = Image.fromarray(draw_background(self.config.layout, rng))
        frames = []
        for row in range(4):
            for column in range(4):
                frame, ink = self._draw_cell(column, row, rng)
                paste(canvas, frame, ink)
                frames.append(frame)
        cells = zip(_CELL_NAMES, frames, strict=True)
        words = [f"{name} {frame.colour} {frame.digit}" for name, frame in cells]
        return np.asarray(canvas), " ".join(words)

    def draw_reading(self, rng: random.Random) -> Described:
        """Draw a scene, described by colours and digits in the order of the colours."""
        scene = self._draw_scene(rng)
        return scene.image, _words(scene.frames)

    def draw_crop(self, rng: random.Random) -> Described:
        """Draw what a call of the teacher shows: three in four with care."""
        scene = self._draw_scene(rng)
        frame = rng.choice(scene.frames)
        box = self._teacher.zoom(frame, rng, 0.75).box
        seen = [frame for frame in scene.frames if frame.inside(box, self.config.scene)]
        return crop(scene.image, box), _words(seen)

    def draw_boxes(self, rng: random.Random) -> Described:
        """Draw a scene, described by the careful calls that name and box each frame."""
        scene = self._draw_scene(rng)
        # In any order, so that only its colour tells which frame is meant.
        frames = rng.sample(scene.frames, len(scene.frames))
        calls = [self._teacher.careful_zoom(frame).arguments() for frame in frames]
        return scene.image, " ".join(calls)

    def _demonstrate(self, index: int) -> Example:
        drawn = self.draw("sft", index)
        scene, info = drawn.shown, drawn.question.info
        if info["kind"] == "control":
            turns = self._teacher.count(scene, drawn.rng)
        else:
            by_name = {frame.colour: frame for frame in scene.frames}
            asked = [by_name[colour] for colour in info["asked"]]
            turns = self._teacher.read(scene, asked, drawn.rng)
        return Example(drawn.question, turns, with_tools=True)

    def _draw_scene(self, rng: random.Random) -> Scene:
        return draw_scene(self.config.layout, self.config.frames, rng, "train")

    def _draw_cell(self, column: int, row: int, rng: random.Random) -> tuple[Frame, np.ndarray]:
        """Draw one cell of a sheet: its frame, and the digit in it."""
        config = self.config
        cell = config.scene // 4
        # Small frames lie in the cells of the scene's grid, as they will in scenes.
        step = 1
        if config.small_sheets and config.grid:
            step = config.scene // config.grid
        if config.small_sheets:
            side = config.layout.frame
        else:
            smallest = cell * 2 // 3 + 2 * config.border
            side = rng.randint(smallest, cell - 4)
        steps = (cell - side) // step
        left = cell * column + step * rng.randint(0, steps)
        top = cell * row + step * rng.randint(0, steps)
        colour = rng.choice(sorted(COLOURS))
        written = handwriting("train", rng)
        frame = Frame(colour, written.digit, left, top, side, config.border)
        return frame, written.ink


@dataclass(frozen=True)
class Lesson:
    """A kind of SFT example that teaches the eye."""

    draw: Callable[[SmallDigit, random.Random], Described]
    text: str  # of the question
    with_tools: bool  # does the prompt show the system text and the tools, as for calls?


LESSONS = {
    # Colours and digits of sixteen cells, named by letters: a name to look by is learned far sooner
    # than a count.
    "sheet": Lesson(SmallDigit.draw_sheet, "Read all.", with_tools=False),
    # Those of a scene, by colour.
    "reading": Lesson(SmallDigit.draw_reading, "Read all.", with_tools=True),
    # What a zoom shows, often nothing.
    "crop": Lesson(SmallDigit.draw_crop, "Read all.", with_tools=False),
    # How a careful call would name and box each frame.
    "boxes": Lesson(SmallDigit.draw_boxes, "Locate all.", with_tools=True),
}
"""What is learned in other words, or under another prompt, hardly carries over: so `reading` and
`boxes` show the prompt of calls."""


def _scale(rule: ImageRule, side: int) -> float:
    """Return how much smaller a model sees a square picture; enlarging it shows nothing new."""
    tokens, _ = rule.grid(side, side)
    return min(1.0, tokens * rule.side / side)


def _ask(scene: Scene, asked: Sequence[Frame]) -> tuple[str, str, int]:
    """Return the kind, the text and the answer of a question about no, one or two frames."""
    if not asked:
        return "control", "How many frames are in the picture?", len(scene.frames)
    if len(asked) == 1:
        return "frame", f"Which digit is in the {asked[0].colour} frame?", asked[0].digit
    first, second = asked
    text = (
        f"Which is the larger of the digits in the {first.colour} frame "
        f"and the {second.colour} frame?"
    )
    return "larger", text, max(first.digit, second.digit)


def _words(frames: Sequence[Frame]) -> str:
    words = [f"{frame.colour} {frame.digit}" for frame in by_colour(frames)]
    return " ".join(words)
