"""The scripted teacher of `small_digit`: it reads digits, or zooms in on them, mostly badly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from axpo.tasks.embedded.pictures import Box, Frame, Span, crop
from axpo.tasks.embedded.scenes import Scene, by_colour
from axpo.tasks.task import Turns
from axpo.tasks.turns import calling_turn, final_turn
from rollout_workers.trajectory import Pixels

# About as long as a call: a rollout's signal is spread over its tokens, so a short way of
# answering would weigh more.
_READ_AT_ONCE = (
    "I look for the frame in the whole picture. It is small, though it can be read from here. "
    "I look to the frame and read it from here, small though it is."
)


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
    miss: Span = Field(
        (160, 400), description="how far a hasty box is off on both axes, in thousandths"
    )


@dataclass(frozen=True)
class Zoom:
    """A call of the teacher: the frame that it aims at, its box, and how it is written."""

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
        # The middle of the box, in quarters of the picture.
        column = "abcd"[(left + right) * 2 // 1000]
        row = (top + bottom) * 2 // 1000 + 1
        return f'{{"label": "{self.colour} {column}{row}", "bbox_2d": {box}}}'

    def turns(self, thought: str, image: Pixels) -> Turns:
        """Return the turn that calls, and what the tool answers."""
        call = f'{{"name": "image_zoom_in", "arguments": {self.arguments()}}}'
        result = ("", (crop(image, self.box),))
        return [calling_turn(thought, call), result]


class Teacher:
    """Write the turns of demonstrations, for scenes of one size."""

    def __init__(self, config: TeacherConfig, side: int) -> None:
        self._config = config
        self._side = side  # of a scene, in pixels

    def read(self, scene: Scene, asked: Sequence[Frame], rng: random.Random) -> Turns:
        """Return turns that read the frames asked for, and answer with the largest digit."""
        truth = str(max(frame.digit for frame in asked))
        if rng.random() >= self._config.tool_rate:
            readings = [f"The {frame.colour} frame shows {frame.digit}." for frame in asked]
            thought = " ".join([_READ_AT_ONCE, *readings])
            return [final_turn(thought, truth)]
        turns: Turns = []
        seen = ""
        for frame in asked:
            zoom = self.zoom(frame, rng, self._config.care)
            thought = f"{seen}The {frame.colour} frame is too small to read. I zoom in."
            turns += zoom.turns(thought, scene.image)
            # The teacher sees that it missed, but does not zoom again.
            if not frame.inside(zoom.box, self._side):
                return [*turns, final_turn("The crop does not show it.", "unknown")]
            seen = f"The crop shows {frame.digit}. "
        return [*turns, final_turn(seen.rstrip(), truth)]

    def count(self, scene: Scene, rng: random.Random) -> Turns:
        """Return turns that count the frames.

        The teacher is as ready to zoom as elsewhere, at a frame or beside it, and right either way:
        what the crop shows is in the whole picture too.
        """
        seen = [f"There is the {frame.colour} frame." for frame in by_colour(scene.frames)]
        thought = " ".join(["I count in the whole picture.", *seen])
        last = final_turn(thought, str(len(scene.frames)))
        if rng.random() >= self._config.tool_rate:
            return [last]
        frame = rng.choice(scene.frames)
        zoom = self.zoom(frame, rng, self._config.care)
        return [*zoom.turns("The frames are small. I zoom in.", scene.image), last]

    def zoom(self, frame: Frame, rng: random.Random, care: float) -> Zoom:
        """Draw a call that aims at a frame, careful with probability `care`."""
        if rng.random() < care:
            return self.careful_zoom(frame)
        shift = self._draw_miss(rng), self._draw_miss(rng)
        return Zoom(frame.colour, self._box(frame, shift), careful=False)

    def careful_zoom(self, frame: Frame) -> Zoom:
        """Return the call that hits a frame."""
        return Zoom(frame.colour, self._box(frame, (0, 0)), careful=True)

    def _box(self, frame: Frame, shift: Span) -> Box:
        return frame.box(self._config.box, self._side, shift, self._config.step)

    def _draw_miss(self, rng: random.Random) -> int:
        """Draw how far a hasty box is off on one axis."""
        sign = rng.choice((-1, 1))
        return sign * rng.randint(*self._config.miss)
