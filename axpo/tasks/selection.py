"""Choose which rows of a source are asked, by their columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from axpo.errors import AxpoError
from axpo.tasks.data import Source

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
        if self.among is not None and not _is_one_of(value, self.among):
            return False
        if _is_one_of(value, self.not_among):
            return False
        if self.at_least is None and self.at_most is None:
            return True
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


def _is_one_of(value: Any, values: tuple[Scalar, ...]) -> bool:
    # For Python, true is 1.
    same = [one for one in values if isinstance(one, bool) == isinstance(value, bool)]
    return value in same


ConditionOrList = Annotated[Condition, BeforeValidator(_condition_of)]


class Selection(Source):
    """Where questions come from, and which of the rows are asked."""

    keep: dict[str, ConditionOrList] = Field(
        default_factory=dict,
        description="only rows whose columns are like this: a list of values, or `among`, "
        "`not_among`, `at_least`, `at_most`. Columns are named as in `columns`",
    )

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
