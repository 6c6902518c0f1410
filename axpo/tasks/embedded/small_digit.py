"""Read the small digit: real handwritten digits, pasted small in coloured frames into real photographs.

The policy sees the whole scene scaled down, where a digit is only partly legible; `image_zoom_in` crops the original.
Digits are scikit-learn's UCI digits (8x8, 1,797 of them; every fifth is held out for evaluation), photographs its two
sample images. Every question is a pure function of (split, index), so data order and resume need no state.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, model_validator

from axpo.tasks.embedded.generated import Generated
from axpo.tasks.task import TaskConfig, Turns, tasks
from rollout_workers.trajectory import Pixels, Question

COLOURS = {
    "red": (225, 30, 30),
    "blue": (40, 70, 235),
    "green": (20, 165, 50),
    "yellow": (240, 215, 20),
}
_READ = (  # About as long as a call: a rollout's signal is spread over its tokens, so a short way of answering would weigh more.
    "I look for the frame in the whole picture. It is small, though it can be read from here. "
    "I look to the frame and read it from here, small though it is."
)
Box: TypeAlias = tuple[int, int, int, int]


class TeacherConfig(BaseModel):
    """The scripted SFT teacher: thinks, then answers directly or zooms, mostly with an imprecise box.

    It has two ways of calling. With care it names the object first and then the box around it; in haste it writes the box first,
    beside the object. So a policy can find the better way by sampling calls, and its first difference lies inside the call.
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
class SmallDigitConfig(TaskConfig):
    """Difficulty of the task; all sizes in pixels of the original scene."""

    scene: int = Field(256, ge=128, le=4096, description="side of a scene")
    digit: int = Field(
        22, ge=8, description="side of a digit; half of it is seen at the demo's 128-pixel view"
    )
    border: int = Field(5, ge=1, description="width of the coloured frame")
    grid: int | None = Field(
        None,
        ge=2,
        description="frames lie in the cells of a grid with so many a side. 8: inside one token of the embedded model's vision encoder, "
        "in the whole view and in a crop of a sixteenth of it; None: anywhere",
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
        description="share of questions that ask how many frames there are, which a zoom does not help to see",
    )
    held_out: int = Field(256, ge=1, description="number of held-out questions")
    small_sheets: bool = Field(
        False, description="SFT sheets show frames of a scene's size instead of large ones"
    )
    teacher: TeacherConfig = TeacherConfig()

    @model_validator(mode="after")
    def _fits(self) -> SmallDigitConfig:
        outer, cell = self.digit + 2 * self.border, self.scene // (self.grid or 3)
        if outer > cell:
            raise ValueError(
                f"digit={self.digit}: with its frame {outer} pixels wide, which does not fit into {cell}"
            )
        return self

    def check_inputs(self) -> None:
        """Nothing to read: digits and photographs come with scikit-learn."""

    def load(self) -> SmallDigit:
        """The task."""
        return SmallDigit(self)


@dataclass(frozen=True)
class Frame:
    colour: str
    digit: int
    left: int
    top: int
    side: int
    border: int

    def box(self, side: int, scene: int, shift: tuple[int, int] = (0, 0), step: int = 1) -> Box:
        """A square box of `side` thousandths around the frame, moved by `shift`, kept inside the scene, on multiples of `step`."""
        corners = []
        for start, moved in ((self.left, shift[0]), (self.top, shift[1])):
            centre = (start + self.side / 2) * 1000 / scene + moved
            corners.append(int(min(max(0, round((centre - side / 2) / step) * step), 1000 - side)))
        x, y = corners
        return x, y, x + side, y + side

    def inside(self, box: Box, scene: int) -> bool:
        """Whether the whole panel (the frame without its border) lies in the box."""
        inner = self.border
        x0, y0, x1, y1 = (v * scene / 1000 for v in box)
        return (
            x0 <= self.left + inner
            and y0 <= self.top + inner
            and x1 >= self.left + self.side - inner
            and y1 >= self.top + self.side - inner
        )


@dataclass(frozen=True)
class Scene:
    image: Pixels
    frames: tuple[Frame, ...]


class SmallDigit(Generated[SmallDigitConfig]):
    """Questions, verifier and teacher of the task."""

    def example(self, kind: str, index: int) -> tuple[Question, Turns, bool]:
        """An SFT example: `demonstration` is the teacher at work; the other kinds teach the eye.

        `sheet`: colours and digits of sixteen cells, named by letters: a name to look by is learned far sooner than a count;
        `reading`: those of a scene, by colour; `crop`: what a zoom shows, often nothing; `boxes`: how a careful call would name and box
        each frame. What is learned in other words, or under another prompt, hardly carries over: `reading` and `boxes` show the prompt
        of calls.
        Returns question, turns and whether the prompt shows system text and tools. Raises KeyError for another kind.
        """
        if kind == "demonstration":
            question, scene, rng = self._question("sft", index)
            if question.info["kind"] == "control":
                return question, self._teach_control(scene, rng), True
            asked = [f for name in question.info["asked"] for f in scene.frames if f.colour == name]
            return question, self._teach(scene, asked, rng), True
        rng = random.Random(f"{kind}/{index}")
        draw = {
            "sheet": self._sheet,
            "reading": self._whole,
            "crop": self._zoomed,
            "boxes": self._boxes,
        }[kind]
        image, words = draw(rng)
        question = Question(
            f"{kind}-{index}", "Locate all." if kind == "boxes" else "Read all.", (image,), ""
        )
        return (
            question,
            [f"{words or 'none'}\n</think>\n\nDone.<|im_end|>"],
            kind in ("boxes", "reading"),
        )

    def _sheet(self, rng: random.Random) -> tuple[Pixels, str]:
        """A photograph under a grid of 4 x 4, a framed digit in each cell: many lessons a look."""
        config, cell = self.config, self.config.scene // 4
        small, step = (
            config.digit + 2 * config.border,
            config.scene // (config.grid or config.scene) if config.small_sheets else 1,
        )
        canvas = Image.fromarray(
            draw_scene(self.config.model_copy(update={"frames": (0, 0)}), rng, "train").image
        )
        frames = []
        for row in range(4):
            for column in range(4):
                outer = (
                    small
                    if config.small_sheets
                    else rng.randint(cell * 2 // 3 + 2 * config.border, cell - 4)
                )
                x, y = (
                    cell * start + step * rng.randint(0, (cell - outer) // step)
                    for start in (column, row)
                )
                frames.append(
                    paste(
                        canvas,
                        rng,
                        rng.choice(sorted(COLOURS)),
                        x,
                        y,
                        outer,
                        config.border,
                        "train",
                    )
                )
        words = " ".join(
            f"{name} {f.colour} {f.digit}"
            for name, f in zip("abcdefghijklmnop", frames, strict=True)
        )
        return np.asarray(canvas), words

    def _whole(self, rng: random.Random) -> tuple[Pixels, str]:
        scene = draw_scene(self.config, rng, "train")
        return scene.image, _read(scene.frames)

    def _zoomed(self, rng: random.Random) -> tuple[Pixels, str]:
        """What a call of the teacher's shows: three in four with care."""
        scene = draw_scene(self.config, rng, "train")
        box = self._careful_or_hasty(rng.choice(scene.frames), rng, 0.75)[1]
        return _crop(scene.image, box), _read(
            [f for f in scene.frames if f.inside(box, self.config.scene)]
        )

    def _boxes(self, rng: random.Random) -> tuple[Pixels, str]:
        scene = draw_scene(self.config, rng, "train")
        frames = rng.sample(
            scene.frames, len(scene.frames)
        )  # in any order, so that only its colour tells which frame is meant
        return scene.image, " ".join(
            _arguments(self._box(f), f.colour, careful=True) for f in frames
        )

    def _careful_or_hasty(self, frame: Frame, rng: random.Random, care: float) -> tuple[bool, Box]:
        careful, miss = rng.random() < care, self.config.teacher.miss
        return careful, self._box(frame, (0, 0) if careful else (_off(rng, miss), _off(rng, miss)))

    def _box(self, frame: Frame, off: tuple[int, int] = (0, 0)) -> Box:
        return frame.box(self.config.teacher.box, self.config.scene, off, self.config.teacher.step)

    def _question(self, split: str, index: int) -> tuple[Question, Scene, random.Random]:
        rng = random.Random(f"{split}/{index}")
        scene = draw_scene(self.config, rng, "test" if split == "test" else "train")
        larger = rng.random() < self.config.larger_share and len(scene.frames) > 1
        asked = rng.sample(scene.frames, 2 if larger else 1)
        # A source of its own: whatever the share, the other questions stay what they are.
        control = random.Random(f"control/{split}/{index}").random() < self.config.control_share
        if control:
            asked, text = [], "How many frames are in the picture?"
        elif larger:
            text = f"Which is the larger of the digits in the {asked[0].colour} frame and the {asked[1].colour} frame?"
        else:
            text = f"Which digit is in the {asked[0].colour} frame?"
        info = {
            "kind": "control" if control else "larger" if larger else "frame",
            "asked": [f.colour for f in asked],
            "boxes": {f.colour: list(self._box(f)) for f in scene.frames},
        }
        answer = len(scene.frames) if control else max(f.digit for f in asked)
        question = Question(f"{split}-{index}", text, (scene.image,), str(answer), info)
        return question, scene, rng

    def _teach(self, scene: Scene, asked: Sequence[Frame], rng: random.Random) -> Turns:
        teacher = self.config.teacher
        truth = str(max(f.digit for f in asked))
        if rng.random() >= teacher.tool_rate:
            seen = " ".join(f"The {f.colour} frame shows {f.digit}." for f in asked)
            return [final_turn(f"{_READ} {seen}", truth)]
        turns: Turns = []
        thought = ""
        for frame in asked:
            careful, box = self._careful_or_hasty(frame, rng, teacher.care)
            turns += [
                _call(
                    f"{thought}The {frame.colour} frame is too small to read. I zoom in.",
                    box,
                    frame.colour,
                    careful,
                ),
                ("", (_crop(scene.image, box),)),
            ]
            if not frame.inside(box, self.config.scene):
                return [*turns, final_turn("The crop does not show it.", "unknown")]
            thought = f"The crop shows {frame.digit}. "
        return [*turns, final_turn(thought.rstrip(), truth)]

    def _teach_control(self, scene: Scene, rng: random.Random) -> Turns:
        """As ready to zoom as elsewhere, at a frame or beside it, and right either way: what the crop shows is in the whole picture too."""
        seen = " ".join(
            f"There is the {f.colour} frame." for f in sorted(scene.frames, key=lambda f: f.colour)
        )
        last = final_turn(f"I count in the whole picture. {seen}", str(len(scene.frames)))
        if rng.random() >= self.config.teacher.tool_rate:
            return [last]
        frame = rng.choice(scene.frames)
        careful, box = self._careful_or_hasty(frame, rng, self.config.teacher.care)
        return [
            _call("The frames are small. I zoom in.", box, frame.colour, careful),
            ("", (_crop(scene.image, box),)),
            last,
        ]


def _read(frames: Sequence[Frame]) -> str:
    return " ".join(f"{f.colour} {f.digit}" for f in sorted(frames, key=lambda f: f.colour))


def _off(rng: random.Random, miss: tuple[int, int]) -> int:
    return rng.choice((-1, 1)) * rng.randint(*miss)


def _crop(image: Pixels, box: Box) -> Pixels:
    left, top, right, bottom = (round(v * image.shape[0] / 1000) for v in box)
    return image[top:bottom, left:right]


def final_turn(thought: str, answer: str) -> str:
    """A policy turn that answers."""
    return f"{thought}\n</think>\n\nThe answer is \\boxed{{{answer}}}.<|im_end|>"


def _arguments(box: Box, colour: str, careful: bool) -> str:
    """With care: first what it is and in which sixteenth of the picture (columns a to d, rows 1 to 4), then the box."""
    if not careful:
        return f'{{"bbox_2d": {list(box)}, "label": "{colour} frame"}}'
    column, row = ((box[i] + box[i + 2]) * 2 // 1000 for i in (0, 1))
    return f'{{"label": "{colour} {"abcd"[column]}{row + 1}", "bbox_2d": {list(box)}}}'


def _call(thought: str, box: Box, colour: str, careful: bool) -> str:
    call = f'{{"name": "image_zoom_in", "arguments": {_arguments(box, colour, careful)}}}'
    return calling_turn(thought, call)


def calling_turn(thought: str, call: str) -> str:
    """A policy turn that calls a tool; `call` is JSON."""
    return f"{thought}\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>"


def draw_scene(
    config: SmallDigitConfig, rng: random.Random, split: Literal["train", "test"]
) -> Scene:
    """A crop of a photograph with framed digits pasted in, none touching another."""
    canvas = photograph(config.scene, rng)
    outer = config.digit + 2 * config.border
    frames: list[Frame] = []
    colours = rng.sample(sorted(COLOURS), rng.randint(*config.frames))
    while len(frames) < len(colours):
        x, y = (_place(config, rng, outer) for _ in range(2))
        if all(max(abs(x - f.left), abs(y - f.top)) > outer * 1.4 for f in frames):
            frames.append(
                paste(canvas, rng, colours[len(frames)], x, y, outer, config.border, split)
            )
    return Scene(np.asarray(canvas), tuple(frames))


def _place(config: SmallDigitConfig, rng: random.Random, outer: int) -> int:
    if config.grid is None:
        return rng.randint(4, config.scene - outer - 4)
    cell = config.scene // config.grid
    return cell * rng.randrange(config.grid) + rng.randint(0, cell - outer)


def paste(
    canvas: Image.Image,
    rng: random.Random,
    colour: str,
    x: int,
    y: int,
    outer: int,
    border: int,
    split: str,
    digit: int | None = None,
) -> Frame:
    """A handwritten digit, any or a given one, in a frame of `outer` pixels."""
    images, labels = digits(split)
    pick = (
        rng.randrange(len(labels)) if digit is None else rng.choice(np.flatnonzero(labels == digit))
    )
    ImageDraw.Draw(canvas).rectangle((x, y, x + outer - 1, y + outer - 1), fill=COLOURS[colour])
    side = outer - 2 * border
    canvas.paste(
        Image.fromarray(images[pick]).resize((side, side), Image.Resampling.BICUBIC),
        (x + border, y + border),
    )
    return Frame(colour, int(labels[pick]), x, y, outer, border)


def photograph(side: int, rng: random.Random) -> Image.Image:
    """A random square of one of the photographs, scaled to `side` pixels."""
    photo = photos()[rng.randrange(2)]
    cut = rng.randint(240, min(photo.size))
    left, top = rng.randint(0, photo.width - cut), rng.randint(0, photo.height - cut)
    return photo.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + cut, top + cut))


@cache
def photos() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_image

    return tuple(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))


@cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Dark ink on a light panel, [n, 8, 8] uint8, and labels [n]; every fifth digit belongs to the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = (np.arange(len(data.target)) % 5 == 0) == (split == "test")
    return (255 - data.images[chosen] * 15).astype(np.uint8), data.target[chosen]
