"""DynaMath: seed questions that a program varies, ten times each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from axpo.errors import AxpoError
from axpo.evaluation.answers import chosen, final_text, normalised, within
from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.rows import Row, download, find_files, folder_of, table_rows
from axpo.evaluation.values import value
from axpo.tasks import choices
from axpo.tasks.verifiers import choice

SEEDS, VARIANTS = 501, 10
TOLERANCE = 0.001
"""Absolute, as in the official scoring of floats."""

_HINTS = {
    "float": "Give a decimal number with three digits after the point.",
    "multiple choice": "Give the letter of the right choice.",
}
_NUMBER = re.compile(r"(?<=[^\d])(\d+)")


@benchmarks.register("dynamath")
class DynaMath(Benchmark):
    """501 seed questions, one variant of each or all ten with the worst case (Apache-2.0)."""

    title = "DynaMath"
    hub = "DynaMath/DynaMath_Sample"
    also = ("DynaMath",)
    licence = "Apache-2.0"

    variants: Literal["one", "all"] = Field(
        "one", description="one: the first variant of each seed; all: ten, and the worst case"
    )

    @property
    def expected(self) -> int:
        """Return the rows of the chosen variants."""
        return SEEDS if self.variants == "one" else SEEDS * VARIANTS

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of the chosen variants, variant by variant."""
        files = _by_variant(find_files(data, self.hub, "sample*.parquet", self.also))
        wanted = [1] if self.variants == "one" else sorted(files)
        missing = set(wanted) - set(files)
        if missing:
            found = ", ".join(map(str, sorted(files)))
            folder = folder_of(data, self.hub, self.also)
            raise AxpoError(
                f"{folder}: no file of variant 1 in it (it has those of {found or 'none'}); "
                f"{download(self.hub, folder)}"
            )
        for variant in wanted:
            for row in table_rows(files[variant], ["decoded_image"]):
                yield _item(row, variant)

    def score(self, item: Item, answer: str) -> Score:
        """Compare as the row's answer type says."""
        given, truth = final_text(answer), item.accepted[0]
        if item.kind == "multiple choice":
            return Score(_is_choice(given, truth, item.options))
        expected = value(truth)
        # The few rows of "int" and "single answer" are numbers or words.
        if expected is not None and item.kind != "text":
            return Score(within(value(given), expected, absolute=TOLERANCE))
        said = normalised(given)
        # The official rule, that way round: the answer stands in the truth. An empty one would too.
        return Score(bool(said) and _stands_in(said, normalised(truth)))

    def further(self, right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
        """Return `worst_case`: the share of seeds that are right in all variants."""
        if self.variants == "one":
            return {}
        seeds: dict[str, list[Sequence[bool]]] = defaultdict(list)
        for question, samples in right.items():
            seeds[question.partition("-")[2]].append(samples)
        worst: list[float] = []
        for of_seed in seeds.values():
            # Sample by sample: each is one pass over the benchmark.
            passes = [all(samples) for samples in zip(*of_seed, strict=True)]
            worst.append(sum(passes) / len(passes))
        return {"worst_case": sum(worst) / len(worst)} if worst else {}


def _item(row: Row, variant: int) -> Item:
    seed, kind = row.text("id"), row.text("answer_type")
    text, image = row.text("question"), row.picture("decoded_image")
    if image is None:
        raise row.fault("decoded_image", "a picture", None)
    listed = choices.options(text)
    if kind in _HINTS:
        text += f"\n{_HINTS[kind]}"
    return Item(
        id=f"{variant}-{seed}",
        text=text,
        images=(image,),
        accepted=(row.text("ground_truth"),),
        options=tuple(listed.values()) if kind == "multiple choice" else (),
        kind=kind,
        categories={
            # One row spells "analytic     geometry".
            "subject": " ".join(row.text("subject").split()),
            "level": row.text("knowledge_level"),
        },
        cluster=seed,
    )


def _by_variant(files: Sequence[Path]) -> dict[int, list[Path]]:
    """Return the files of each variant: `sample_variant3-00000-of-00001`, `sample3-...`."""
    found: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        number = _NUMBER.search(file.name)
        if number:
            found[int(number[1])].append(file)
    return found


def _is_choice(given: str, truth: str, options: Sequence[str]) -> bool:
    letter = choice(truth)
    if letter is None:
        return normalised(given) == normalised(truth)
    position = chosen(given, options) if options else None
    named = choice(given) if position is None else chr(ord("A") + position)
    return named == letter


def _stands_in(said: str, truth: str) -> bool:
    """Return whether whole words stand in the truth: "a" does not stand in "May"."""
    return f" {said} " in f" {truth} "
