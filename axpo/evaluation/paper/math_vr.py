"""Math-VR: mathematics that asks for several final answers, with pictures or without."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.formulas import equal, parts
from axpo.evaluation.rows import Row, find_files, table_rows

_MARK = re.compile(r"\s*<image(\d+)>")
_PICTURES = [f"image{number}" for number in range(1, 9)]
# What stands between two answers beside a comma.
_AND = re.compile(r"\\text\{\s*and\s*\}|\band\b|\\\\|\\q?quad\b")


@benchmarks.register("math-vr")
class MathVR(Benchmark):
    """2,500 problems with one or more answers; the official judge has a rubric (Apache-2.0)."""

    title = "Math-VR"
    hub = "gogoduan/Math-VR-bench"
    also = ("Math-VR",)
    licence = "Apache-2.0"
    needs_judge = True

    @property
    def expected(self) -> int:
        """Return the English questions by the authors' own count; their card says 3,000."""
        return 2500

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of the test file."""
        files = find_files(data, self.hub, "test*.parquet", self.also)
        for row in table_rows(files, _PICTURES):
            yield _item(row)

    def score(self, item: Item, answer: str) -> Score:
        """Say right if each accepted answer stands in a box, in order; else let a judge say."""
        truths = item.accepted
        boxes = all_boxes(answer)
        given = parts(boxes[-1]) if boxes else []
        # Several answers stand in one box with commas or words between them, or in a box each.
        if len(given) != len(truths) and boxes:
            given = parts(_AND.sub(",", boxes[-1]))
        if len(given) != len(truths):
            given = boxes[-len(truths) :]
        if len(given) != len(truths):
            return Score(None)
        pairs = zip(truths, given, strict=True)
        right = all(equal(_value_side(truth), _value_side(one)) for truth, one in pairs)
        return Score(True if right else None)


def _item(row: Row) -> Item:
    question = row.text("question")
    pictures = {name: row.picture(name) for name in _PICTURES}
    marked = [f"image{number}" for number in _MARK.findall(question)]
    # In the order of their marks; those without one come last.
    order = dict.fromkeys([name for name in marked if name in pictures] + _PICTURES)
    images = [picture for name in order if (picture := pictures[name]) is not None]
    text = _MARK.sub("", question).strip()
    answers = row.texts("answers")
    if not answers:
        raise row.fault("answers", "an answer", None)
    return Item(
        id=row.text("id"),
        text=text,
        images=tuple(images),
        accepted=answers,
        categories={"category": row.text("category")},
        # The official evaluation shows the pictures after the text.
        image_places=(len(text),) * len(images),
    )


def all_boxes(text: str) -> list[str]:
    """Return the content of every \\boxed{...} that is closed; of nested ones the outer."""
    found: list[str] = []
    stack: list[int] = []
    for token in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if token[0].startswith("\\boxed"):
            # Inside another box it is part of that.
            stack.append(-1 if any(start >= 0 for start in stack[-1:]) else token.end())
        elif token[0] == "{":
            stack.append(-1)
        elif token[0] == "}" and stack:
            start = stack.pop()
            if start >= 0:
                found.append(text[start : token.start()].strip())
    return found


def _value_side(formula: str) -> str:
    """Return what stands behind the last `=`: of x = 3, the 3."""
    return formula.rpartition("=")[2].strip().strip("$").strip()
