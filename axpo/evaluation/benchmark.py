"""Say what a benchmark is: its rows as downloaded, its prompt, its scoring, its categories.

A benchmark is one small class, registered under its name:

    @benchmarks.register("mine")
    class Mine(Benchmark):
        '''Fifty questions about maps.'''

        def items(self, data): ...           # the rows of the files below `data`
        def score(self, item, answer): ...   # optional: by default an exact comparison

`axpo eval --benchmark my_package.maps:Mine` measures a class of your own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from axpo.errors import AxpoError
from axpo.evaluation.answers import final_text, normalised
from axpo.evaluation.given import Result, keep
from axpo.registry import Registry, Variant
from rollout_workers.trajectory import LazyImage, Pixels, Question, UnusableQuestion


@dataclass(frozen=True)
class Item:
    """One question of a benchmark."""

    id: str
    text: str  # as the policy reads it, options included
    images: tuple[LazyImage, ...]
    accepted: tuple[str, ...]
    """The answers that are right. Of a choice: the letter."""
    options: tuple[str, ...] = ()
    """The texts of the choices A, B, C ..."""
    kind: str = ""
    """How the answer is compared, if a benchmark has answers of several kinds."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """For example {"subject": "algebra", "level": "3"}."""
    cluster: str = ""
    """Rotations or variants of one question share it; "": the question stands alone."""
    image_places: tuple[int, ...] = ()
    found_by_image: tuple[Result, ...] = ()
    """What a search by the first image had found, for the tool `image_search`."""

    def question(self, benchmark: str, given: Path | None = None) -> Question:
        """Return what the policy is asked; its id is unique among all benchmarks.

        Args:
            benchmark: its name.
            given: where `found_by_image` is written when the first image is read; None: nowhere.
        """
        key = f"{benchmark}/{self.id}"
        return Question(
            id=key,
            text=self.text,
            images=self._lazy(key, given),
            answer=self.accepted[0],
            image_places=self.image_places,
        )

    def _lazy(self, key: str, given: Path | None) -> tuple[LazyImage, ...]:
        images = [LazyImage(partial(_read, key, image)) for image in self.images]
        if given is not None and images and self.found_by_image:
            images[0] = LazyImage(partial(_read_and_keep, images[0], given, self.found_by_image))
        return tuple(images)

    def truths(self) -> tuple[str, ...]:
        """Return the accepted answers as a judge reads them: of a choice with the option's text."""
        if not self.options:
            return self.accepted
        letter = self.accepted[0]
        position = ord(letter) - ord("A")
        if not 0 <= position < len(self.options):
            return self.accepted
        return (f"{letter}. {self.options[position]}",)


@dataclass(frozen=True)
class Score:
    """What the rules of a benchmark say about an answer."""

    right: bool | None
    """None: they cannot tell, so a judge must."""
    columns: Mapping[str, float] = field(default_factory=dict)
    """Further official numbers, for example {"f1": 0.5}."""


class Benchmark(Variant):
    """One benchmark. Fields are the options that a command may set."""

    title: ClassVar[str] = ""
    hub: ClassVar[str] = ""
    """The data set on the Hugging Face hub that has the files."""
    also: ClassVar[tuple[str, ...]] = ()
    """Other names that its folder may have."""
    licence: ClassVar[str] = "not stated"
    needs_judge: ClassVar[bool] = False
    """Whether the rules alone measure something else than what is published."""
    needs_search: ClassVar[bool] = False
    """Whether the questions need a tool that searches."""

    @property
    def expected(self) -> int | None:
        """Return how many questions there are; None if that is not known."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the options that change what is measured."""
        return self.model_dump(mode="json")

    @abstractmethod
    def items(self, data: Path) -> Iterable[Item]:
        """Yield the questions, in the order of the files.

        Args:
            data: the folder of all benchmarks.

        Raises:
            AxpoError: the files are not there, or a row is not what it should be.
        """

    def score(self, item: Item, answer: str) -> Score:
        """Say whether an answer is right.

        Args:
            item: the question.
            answer: what follows the thinking of the last turn; not empty.
        """
        given = normalised(final_text(answer))
        if any(given == normalised(truth) for truth in item.accepted):
            return Score(True)
        return Score(None if self.needs_judge else False)

    def further(self, right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
        """Return further numbers of the whole benchmark, by name.

        Args:
            right: by question id, whether each sample is right.
        """
        return {}

    def load(self, data: Path) -> list[Item]:
        """Return the questions.

        Raises:
            AxpoError: there is none, or two have one id.
        """
        items = list(self.items(data))
        if not items:
            raise AxpoError(f"{self.name}: no rows below {data}")
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise AxpoError(f"{self.name}: two rows have the id {item.id!r}")
            seen.add(item.id)
        return items

    def wrong_count(self, found: int) -> str | None:
        """Return what to tell about the number of rows; None if it is right or not known."""
        if self.expected is None or found == self.expected:
            return None
        return f"{self.name}: {self.expected:,} questions expected, {found:,} found"


def _read(key: str, image: LazyImage) -> Pixels:
    """Return the pixels; the error of a picture that cannot be read names the question."""
    try:
        return image.read()
    except UnusableQuestion as error:
        raise UnusableQuestion(f"question {key}: {error}") from None


def _read_and_keep(image: LazyImage, folder: Path, results: Sequence[Result]) -> Pixels:
    pixels = image.read()
    keep(folder, pixels, results)
    return pixels


benchmarks: Registry[Benchmark] = Registry("benchmarks", Benchmark, "items")
