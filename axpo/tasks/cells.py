"""Read the cells of a row: what is inside of one, a question's text, the accepted answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from axpo.tasks.verifiers import accepted, boxed
from axpo.texts import check_text, shown

_EMPTY: tuple[Any, ...] = (None, "", "[]", [])
"""What a column of further answers holds if there are none."""


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return a column, or what is inside of one: `reward_model.ground_truth`, `prompt.0.content`.

    Args:
        row: its columns.
        path: the name of a column; or names and places in lists with dots between them. Places
            are counted from 0, from the end with a minus.

    Raises:
        KeyError: there is no such column.
        ValueError: there is nothing at that place.
    """
    if path in row:
        return row[path]
    head, *inner = path.split(".")
    value = row[head]
    for step in inner:
        value = _inside(value, step)
    return value


def _inside(value: Any, step: str) -> Any:
    if isinstance(value, Mapping) and step in value:
        return value[step]
    is_place = step.removeprefix("-").isdecimal()
    if isinstance(value, list | tuple) and is_place and -len(value) <= int(step) < len(value):
        return value[int(step)]
    raise ValueError(f"nothing at {shown(step)} of {shown(value)}")


def truth_of(values: Sequence[Any], *, boxes: bool) -> str:
    """Return the accepted answers of a row: a text, or of several answers a list in JSON.

    Args:
        values: of each column of answers its value. All but the first may be empty.
        boxes: each answer stands in \\boxed{}.

    Raises:
        ValueError: a value is no text, no number and no list of texts, or has no box.
    """
    first, *others = values
    filled = [first, *(value for value in others if value not in _EMPTY)]
    texts = [text for value in filled for text in accepted(_answer(value))]
    if boxes:
        texts = [_unboxed(text) for text in texts]
    different = list(dict.fromkeys(texts))
    if len(different) == 1 and not isinstance(first, list):
        return different[0]
    return json.dumps(different, ensure_ascii=False)


def _unboxed(text: str) -> str:
    """Return what stands in the last box of a true answer; raise ValueError if there is none."""
    inside = boxed(text)
    if not inside:
        raise ValueError(f"expected \\boxed{{...}}, found {shown(text)}")
    return inside


def text_of(value: Any) -> str:
    """Return the text of a question; raise ValueError if it is none."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text, found {shown(value)}")
    check_text(value)
    return value


def _answer(value: Any) -> str:
    """Return the text of an answer; raise ValueError if there is none.

    Several accepted answers are a list, which becomes JSON. Tables write a whole number as 7.0 if
    another row has none: that is the number 7.
    """
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return json.dumps([_answer(one) for one in value], ensure_ascii=False)
    # In Python a bool is an int too. Integers may be too large for a float.
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if is_number and not isinstance(value, int) and not math.isfinite(value):
        raise ValueError(f"expected a text or a number, found {value}")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not (is_number or isinstance(value, str)) or not str(value).strip():
        found = value if isinstance(value, str) else shown(value)
        raise ValueError(f"expected a text or a number, found {shown(found)}")
    check_text(value)
    return str(value).strip()
