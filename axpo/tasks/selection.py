"""Choose which rows of a source are asked: by their columns, and by a report of contamination."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from axpo.errors import AxpoError
from axpo.plain_files import NotPlain, read_plain
from axpo.tasks.data import Source
from axpo.texts import shown

LARGEST = 1 << 28
"""Bytes of a report."""
COMMAND = "axpo data decontaminate"

Scalar: TypeAlias = str | int | float | bool | None


def _condition_of(given: Any) -> Any:
    return {"among": given} if isinstance(given, list | tuple) else given


class Condition(BaseModel):
    """What a column of a row must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    among: tuple[Scalar, ...] | None = Field(None, min_length=1, description="one of these values")
    not_among: tuple[Scalar, ...] = Field((), description="none of these values")
    at_least: float | None = Field(None, description="a number that is not smaller")
    at_most: float | None = Field(None, description="a number that is not larger")

    @model_validator(mode="after")
    def _says_something(self) -> Condition:
        if self == Condition.model_construct():
            raise ValueError("expected a list of values, or among, not_among, at_least, at_most")
        return self

    def holds(self, value: Any) -> bool:
        """Return whether a value is what it must be; a value that is no number is in no range."""
        if self.among is not None and value not in self.among:
            return False
        if value in self.not_among:
            return False
        if self.at_least is None and self.at_most is None:
            return True
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


ConditionOrList = Annotated[Condition, BeforeValidator(_condition_of)]


class Selection(Source):
    """Where questions come from, and which of the rows are asked."""

    keep: dict[str, ConditionOrList] = Field(
        default_factory=dict,
        description="only rows whose columns are like this: a list of values, or `among`, "
        "`not_among`, `at_least`, `at_most`. Columns are named as in `columns`",
    )
    without: str | None = Field(
        None, description=f"report of `{COMMAND}`: the rows that it names are left out"
    )

    def identity(self) -> dict[str, Any]:
        """Return what a report calls this source."""
        return self.model_dump(include={"path", "split", "name", "revision"})

    def left_out(self, rows: int) -> frozenset[int]:
        """Return which rows the report names, counted from 0.

        Args:
            rows: how many the source has.

        Raises:
            AxpoError: there is no report, or none of this source as it is now.
        """
        if self.without is None:
            return frozenset()
        again = f"write it with: {COMMAND} RECIPE --against DIR --out {self.without}"
        found: set[int] = set()
        counted: int | None = None
        for line in _lines(Path(self.without), again):
            if line.get("source") != self.identity():
                continue
            if "rows" in line:
                counted = line["rows"]
            elif "benchmark" in line:
                found.add(line["row"] - 1)
        if counted is None:
            raise AxpoError(f"{self.without}: says nothing about {self.path}; {again}")
        if counted != rows:
            raise AxpoError(
                f"{self.without}: was written of {counted:,} rows of {self.path}, which has "
                f"{rows:,}; {again}"
            )
        return frozenset(found)

    def chosen(self, rows: int, value: Callable[[int, str], Any]) -> list[int] | range:
        """Return the numbers of the rows that are asked, from 0.

        A row whose column cannot be read stays: what is wrong with it is told when it is asked.

        Args:
            rows: how many there are.
            value: returns a column of a row; raises ValueError if it cannot be read.

        Raises:
            AxpoError: no row is left, or the report does not fit.
        """
        left_out = self.left_out(rows)
        if not left_out and not self.keep:
            return range(rows)

        def is_kept(number: int) -> bool:
            try:
                return all(one.holds(value(number, name)) for name, one in self.keep.items())
            except ValueError:
                return True

        numbers = [number for number in range(rows) if number not in left_out and is_kept(number)]
        if not numbers:
            conditions = ", ".join(self.keep) or "without"
            raise AxpoError(f"{self.path}: none of {rows:,} rows is left by {conditions}")
        return numbers


def _lines(report: Path, again: str) -> list[dict[str, Any]]:
    try:
        text = read_plain(report, LARGEST).decode()
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except FileNotFoundError:
        raise AxpoError(f"{report}: no such report; {again}") from None
    except (NotPlain, OSError, ValueError, RecursionError) as error:
        raise AxpoError(f"{report}: no report of `{COMMAND}`: {error}; {again}") from None
    wrong = [
        line
        for line in lines
        if not isinstance(line, dict) or not isinstance(line.get("row", 1), int)
    ]
    if wrong:
        raise AxpoError(f"{report}: no report of `{COMMAND}`: {shown(wrong[0])}; {again}")
    return lines
