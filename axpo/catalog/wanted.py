"""Which groups are wanted: a few words that a person types, as conditions on the catalog.

    is:recovered tool:image_zoom_in step:10..20 "red square"

A word `name:value` is a filter; all others must stand in the texts of the group. Ranges are `5`,
`5..10`, `5..`, `..10`, `>5` and `<5`. Several filters must all hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from axpo.errors import AxpoError
from axpo.texts import clean, shown

MOST_CHARACTERS = 500
"""Of what somebody types. A search for more words takes longer than anybody waits."""

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
# What the tokenizer of the full-text search takes for a word.
_SEARCHED = re.compile(r'"([^"]*)"?|([^\s"]+)')


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; None is no limit. If `is_open`, the limits are left out."""

    low: float | None = None
    high: float | None = None
    is_open: bool = False

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read a range; raise ValueError if it is none."""
        if text[:1] in ("<", ">"):
            limit = _number(text[1:])
            return cls(limit, None, True) if text[0] == ">" else cls(None, limit, True)
        low, dots, high = text.partition("..")
        if not dots:
            return cls(_number(text), _number(text))
        return cls(_number(low) if low else None, _number(high) if high else None)

    def conditions(self, column: str) -> list[tuple[str, list[Any]]]:
        """Return what SQL says of a column."""
        equal = "" if self.is_open else "="
        found: list[tuple[str, list[Any]]] = []
        if self.low is not None:
            found.append((f"{column} >{equal} ?", [self.low]))
        if self.high is not None:
            found.append((f"{column} <{equal} ?", [self.high]))
        return found


ANY = Range()


@dataclass(frozen=True)
class Wanted:
    """Filters on groups; empty ones let everything through.

    Attributes:
        text: words that must stand in the group.
        source: `training` or `held-out`.
        step: of the training.
        question: the id of the question, or its beginning with a `*`.
        family: of a mixed task.
        tool: one that ran in the group.
        end: a reason for which a rollout of the group ended.
        reward: mean of the rollouts.
        length: policy tokens of the longest rollout.
        properties: names of `PROPERTIES`.
    """

    text: str = ""
    source: str = ""
    step: Range = ANY
    question: str = ""
    family: str = ""
    tool: str = ""
    end: str = ""
    reward: Range = ANY
    length: Range = ANY
    properties: frozenset[str] = field(default=frozenset())

    def sql(self) -> tuple[str, list[Any]]:
        """Return the conditions on `groups`, and their values."""
        found = self.step.conditions("step")
        found += self.reward.conditions("reward")
        found += self.length.conditions("tokens")
        for column in ("source", "family"):
            if value := getattr(self, column):
                found.append((f"{column} = ?", [value]))
        if self.question.endswith("*"):
            start = self.question[:-1]
            found.append(("substr(question, 1, ?) = ?", [len(start), start]))
        elif self.question:
            found.append(("question = ?", [self.question]))
        for kind in ("tool", "end"):
            if value := getattr(self, kind):
                labelled = "id IN (SELECT id FROM labels WHERE kind = ? AND name = ?)"
                found.append((labelled, [kind, value]))
        found += [(PROPERTIES[name], []) for name in sorted(self.properties)]
        if words := _match(self.text):
            found.append(("id IN (SELECT rowid FROM texts WHERE texts MATCH ?)", [words]))
        values: list[Any] = []
        for _, own in found:
            values += own
        return " AND ".join(condition for condition, _ in found) or "1", values

    @property
    def match(self) -> str:
        """The text as the full-text search takes it; "" if nothing is searched."""
        return _match(self.text)


PROPERTIES = {
    "forked": "forks > 0",
    "unforked": "forks = 0",
    "recovered": "recovered > 0",
    "lost": "forks > 0 AND recovered = 0",
    "right": "right = rollouts",
    "wrong": "right = 0",
    "mixed": "right > 0 AND right < rollouts",
}
"""Filters `is:NAME`."""

NAMES = tuple(one.name for one in fields(Wanted) if one.name not in ("text", "properties"))
"""Filters `NAME:value`."""


def parse(typed: str) -> Wanted:
    """Read what a person typed.

    Raises:
        AxpoError: a filter has no such value.
    """
    if len(typed) > MOST_CHARACTERS:
        raise AxpoError(
            f"the search has {len(typed)} characters; expected at most {MOST_CHARACTERS}"
        )
    # SQLite takes no half of a surrogate pair, and a NUL for the end.
    readable = clean(typed).replace("\0", " ")
    wanted = Wanted()
    words = []
    for word in _WORD.findall(readable):
        name, colon, value = word.partition(":")
        value = value.strip('"')
        if not colon or name not in (*NAMES, "is"):
            words.append(word)
        elif name == "is":
            wanted = replace(wanted, properties=wanted.properties | {_property(value)})
        else:
            changed: dict[str, Any] = {name: _value(name, value)}
            wanted = replace(wanted, **changed)
    return replace(wanted, text=" ".join(words))


def from_fields(given: Mapping[str, str]) -> Wanted:
    """Read the fields of a form: those of `NAMES`, `is`, and `q`, which is parsed as if typed.

    Raises:
        AxpoError: a filter has no such value.
    """
    typed = [given.get("q", "")]
    for name in (*NAMES, "is"):
        value = given.get(name, "").replace('"', "").strip()
        if value:
            typed.append(f'{name}:"{value}"')
    return parse(" ".join(typed))


def _value(name: str, text: str) -> str | Range:
    """Return the value of a filter."""
    if name not in ("step", "reward", "length"):
        return text
    try:
        return Range.parse(text)
    except ValueError:
        raise AxpoError(
            f"{name}:{shown(text)}: expected a number or a range: 5, 5..10, 5.., ..10, >5 or <5"
        ) from None


def _property(name: str) -> str:
    if name not in PROPERTIES:
        raise AxpoError(f"is:{shown(name)}: expected one of {', '.join(PROPERTIES)}")
    return name


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _match(text: str) -> str:
    """Return a text as an expression of the full-text search that has no operators in it.

    Words may go on where the typed ones end; what is in quotes is looked for as it is.
    """
    terms = []
    for phrase, word in _SEARCHED.findall(text):
        # A term of signs alone has no word in it, and would be found nowhere.
        if not re.search(r"\w", phrase or word):
            continue
        terms.append(f'"{phrase}"' if phrase else f'"{word}"*')
    return " ".join(terms)
