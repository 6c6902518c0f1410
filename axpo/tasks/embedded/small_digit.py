"""Read the small digit: real handwritten digits, small in coloured frames in real photographs.

The policy sees the whole scene scaled down, so a digit is only partly legible; `image_zoom_in`
crops the original. Drawing is in `scenes.py` and `pictures.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from axpo.tasks.embedded.generated import Drawn, Generated, GeneratedConfig, picture_split
from axpo.tasks.embedded.pictures import COLOURS, Box, Frame, crop, handwriting, paste
from axpo.tasks.embedded.scenes import Layout, Scene, draw_background, draw_scene
from axpo.tasks.task import Example, Turns, tasks
from axpo.tasks.turns import calling_turn, final_turn, lesson_turn
from rollout_workers.trajectory import Pixels, Question

# About as long as a call: a rollout's signal is spread over its tokens, so a short way of
# answering would weigh more.
_READ_AT_ONCE = (
    "I look for the frame in the whole picture. It is small, though it can be read from here. "
    "I look to the frame and read it from here, small though it is."
)
_CELL_NAMES = "abcdefghijklmnop"


class TeacherConfig(BaseModel):
    """The scripted SFT teacher: it thinks, then answers or zooms, mostly with an imprecise box.

    It has two ways of calling. With care it names the object first and then the box around it; in
    haste it writes the box first, beside the object. So a policy can find the better way by
    sampling calls, and the first difference lies inside the call.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool_rate: float = Field(0.3, ge=0, le=1, description="share of traces that zoom")
    care: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the calls that name the object before they write the box, and hit it",
    )
    box: int = Field(250, ge=50, le=600, description="side of the box, in thousandths of the scene")
    step: int = Field(
        250, ge=1, le=500, description="a box begins at a multiple of so many thousandths"
    )
    miss: tuple[int, int] = Field(
        (160, 400), description="how far a hasty box is off on both axes, in thousandths"
    )


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
    frames: tuple[int, int] = Field((2, 3), description="fewest and most frames in a scene")
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
        outer, cell = self.layout.frame, self.scene // (self.grid or 3)
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

    def load(self) -> SmallDigit:
        """Return the task."""
        return SmallDigit(self)


@dataclass(frozen=True)
class Zoom:
    """A call of the teacher's: at which frame it aims, with which box, and how it is written."""

    colour: str
    box: Box
    careful: bool

    def arguments(self) -> str:
        """Return the arguments of the call as JSON, in the order that the teacher writes them.

        With care it first writes what the object is and in which sixteenth of the picture it lies
        (columns a to d, rows 1 to 4), and then the box.
        """
        box = list(self.box)
        if not self.careful:
            return f'{{"bbox_2d": {box}, "label": "{self.colour} frame"}}'
        left, top, right, bottom = self.box
        column = "abcd"[(left + right) * 2 // 1000]
        row = (top + bottom) * 2 // 1000 + 1
        return f'{{"label": "{self.colour} {column}{row}", "bbox_2d": {box}}}'

    def turns(self, thought: str, image: Pixels) -> Turns:
        """Return the turn that calls, and what the tool answers."""
        call = f'{{"name": "image_zoom_in", "arguments": {self.arguments()}}}'
        return [calling_turn(thought, call), ("", (crop(image, self.box),))]


class SmallDigit(Generated[SmallDigitConfig, Scene]):
    """Questions, verifier and teacher of the task."""

    def draw(self, split: str, index: int) -> Drawn[Scene]:
        """Draw question number `index` of a split."""
        config = self.config
        rng = random.Random(f"{split}/{index}")
        scene = draw_scene(config.layout, config.frames, rng, picture_split(split))
        larger = rng.random() < config.larger_share and len(scene.frames) > 1
        asked = rng.sample(scene.frames, 2 if larger else 1)
        # A source of its own: whatever the share, the other questions stay what they are.
        control = random.Random(f"control/{split}/{index}").random() < config.control_share
        if control:
            kind, asked = "control", []
            text = "How many frames are in the picture?"
            answer = len(scene.frames)
        elif larger:
            kind = "larger"
            first, second = (frame.colour for frame in asked)
            text = f"Which is the larger of the digits in the {first} frame and the {second} frame?"
            answer = max(frame.digit for frame in asked)
        else:
            kind = "frame"
            text = f"Which digit is in the {asked[0].colour} frame?"
            answer = asked[0].digit
        info = {
            "kind": kind,
            "asked": [frame.colour for frame in asked],
            "boxes": {frame.colour: list(self._box(frame)) for frame in scene.frames},
        }
        question = Question(f"{split}-{index}", text, (scene.image,), str(answer), info)
        return Drawn(question, scene, rng)

    def example(self, kind: str, index: int) -> Example:
        """Return an SFT example: `demonstration` is the teacher at work, `LESSONS` teach the eye.

        Raises:
            KeyError: there is no such kind.
        """
        if kind == "demonstration":
            drawn = self.draw("sft", index)
            control = drawn.question.info["kind"] == "control"
            turns = self._count(drawn) if control else self._read(drawn)
            return Example(drawn.question, turns, with_tools=True)
        lesson = LESSONS[kind]
        image, words = lesson.draw(self, random.Random(f"{kind}/{index}"))
        question = Question(f"{kind}-{index}", lesson.text, (image,), "")
        return Example(question, [lesson_turn(words or "none")], lesson.with_tools)

    def _read(self, drawn: Drawn[Scene]) -> Turns:
        """Return the turns of the teacher who reads the frames that it is asked for."""
        scene, rng, teacher = drawn.shown, drawn.rng, self.config.teacher
        asked = []
        for colour in drawn.question.info["asked"]:
            asked += [frame for frame in scene.frames if frame.colour == colour]
        truth = str(max(frame.digit for frame in asked))
        if rng.random() >= teacher.tool_rate:
            seen = " ".join(f"The {frame.colour} frame shows {frame.digit}." for frame in asked)
            return [final_turn(f"{_READ_AT_ONCE} {seen}", truth)]
        turns: Turns = []
        seen = ""
        for frame in asked:
            zoom = self._zoom(frame, rng, teacher.care)
            thought = f"{seen}The {frame.colour} frame is too small to read. I zoom in."
            turns += zoom.turns(thought, scene.image)
            if not frame.inside(zoom.box, self.config.scene):
                return [*turns, final_turn("The crop does not show it.", "unknown")]
            seen = f"The crop shows {frame.digit}. "
        return [*turns, final_turn(seen.rstrip(), truth)]

    def _count(self, drawn: Drawn[Scene]) -> Turns:
        """Return the turns of the teacher who counts the frames.

        It is as ready to zoom as elsewhere, at a frame or beside it, and right either way: what
        the crop shows is in the whole picture too.
        """
        scene, rng, teacher = drawn.shown, drawn.rng, self.config.teacher
        seen = " ".join(f"There is the {frame.colour} frame." for frame in _by_colour(scene.frames))
        last = final_turn(f"I count in the whole picture. {seen}", str(len(scene.frames)))
        if rng.random() >= teacher.tool_rate:
            return [last]
        zoom = self._zoom(rng.choice(scene.frames), rng, teacher.care)
        return [*zoom.turns("The frames are small. I zoom in.", scene.image), last]

    def _zoom(self, frame: Frame, rng: random.Random, care: float) -> Zoom:
        """Draw a call of the teacher's, careful with probability `care`."""
        if rng.random() < care:
            return Zoom(frame.colour, self._box(frame), careful=True)
        miss = self.config.teacher.miss
        shift = _draw_shift(rng, miss), _draw_shift(rng, miss)
        return Zoom(frame.colour, self._box(frame, shift), careful=False)

    def _box(self, frame: Frame, shift: tuple[int, int] = (0, 0)) -> Box:
        teacher = self.config.teacher
        return frame.box(teacher.box, self.config.scene, shift, teacher.step)

    def _draw_sheet(self, rng: random.Random) -> tuple[Pixels, str]:
        """Draw a photograph under a grid of 4 x 4, a framed digit in each cell.

        So one look holds many lessons.
        """
        config, cell = self.config, self.config.scene // 4
        canvas = Image.fromarray(draw_background(config.layout, rng))
        step = config.scene // (config.grid or config.scene) if config.small_sheets else 1
        frames = []
        for row in range(4):
            for column in range(4):
                if config.small_sheets:
                    side = config.layout.frame
                else:
                    side = rng.randint(cell * 2 // 3 + 2 * config.border, cell - 4)
                steps = (cell - side) // step
                left = cell * column + step * rng.randint(0, steps)
                top = cell * row + step * rng.randint(0, steps)
                colour = rng.choice(sorted(COLOURS))
                written = handwriting("train", rng)
                frame = Frame(colour, written.digit, left, top, side, config.border)
                paste(canvas, frame, written.ink)
                frames.append(frame)
        cells = zip(_CELL_NAMES, frames, strict=True)
        words = " ".join(f"{name} {frame.colour} {frame.digit}" for name, frame in cells)
        return np.asarray(canvas), words

    def _draw_reading(self, rng: random.Random) -> tuple[Pixels, str]:
        scene = self._draw_lesson_scene(rng)
        return scene.image, _words(scene.frames)

    def _draw_crop(self, rng: random.Random) -> tuple[Pixels, str]:
        """Draw what a call of the teacher's shows: three in four with care."""
        scene = self._draw_lesson_scene(rng)
        box = self._zoom(rng.choice(scene.frames), rng, 0.75).box
        seen = [frame for frame in scene.frames if frame.inside(box, self.config.scene)]
        return crop(scene.image, box), _words(seen)

    def _draw_boxes(self, rng: random.Random) -> tuple[Pixels, str]:
        scene = self._draw_lesson_scene(rng)
        # In any order, so that only its colour tells which frame is meant.
        frames = rng.sample(scene.frames, len(scene.frames))
        zooms = [Zoom(frame.colour, self._box(frame), careful=True) for frame in frames]
        return scene.image, " ".join(zoom.arguments() for zoom in zooms)

    def _draw_lesson_scene(self, rng: random.Random) -> Scene:
        return draw_scene(self.config.layout, self.config.frames, rng, "train")


Draw: TypeAlias = Callable[[SmallDigit, random.Random], tuple[Pixels, str]]


@dataclass(frozen=True)
class Lesson:
    """A kind of SFT example that teaches the eye."""

    draw: Draw  # the picture, and the words that say what it shows
    text: str  # of the question
    with_tools: bool  # does the prompt show the system text and the tools, as for calls?


LESSONS = {
    # Colours and digits of sixteen cells, named by letters: a name to look by is learned far sooner
    # than a count.
    "sheet": Lesson(SmallDigit._draw_sheet, "Read all.", with_tools=False),
    # Colours and digits of a scene, in the order of the colours.
    "reading": Lesson(SmallDigit._draw_reading, "Read all.", with_tools=True),
    # What a zoom shows, often nothing.
    "crop": Lesson(SmallDigit._draw_crop, "Read all.", with_tools=False),
    # How a careful call would name and box each frame.
    "boxes": Lesson(SmallDigit._draw_boxes, "Locate all.", with_tools=True),
}
"""What is learned in other words, or under another prompt, hardly carries over: so `reading` and
`boxes` show the prompt of calls."""


def _by_colour(frames: Sequence[Frame]) -> list[Frame]:
    return sorted(frames, key=lambda frame: frame.colour)


def _words(frames: Sequence[Frame]) -> str:
    return " ".join(f"{frame.colour} {frame.digit}" for frame in _by_colour(frames))


def _draw_shift(rng: random.Random, miss: tuple[int, int]) -> int:
    """Draw how far a hasty box is off on one axis."""
    return rng.choice((-1, 1)) * rng.randint(*miss)
