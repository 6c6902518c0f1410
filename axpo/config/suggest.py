"""Name the key that a recipe probably means, when it has one that does not exist."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from axpo.config.recipe import Recipe
from axpo.registry import Variant
from axpo.texts import closest

MOST = 3
"""Places that are named if a key exists in several sections."""


def suggestion(place: Sequence[str | int], recipe: Mapping[str, Any]) -> str:
    """Return "; did you mean ...?" for an unknown key, or "".

    Args:
        place: of the unknown key.
        recipe: the fields as they were given.
    """
    *above, key = place
    section = _section_at(above, recipe)
    near = closest(str(key), _fields(section)) if section is not None else None
    if near is not None:
        return f"; did you mean {'.'.join([*map(str, above), near])}?"
    # The key may be right, and its section forgotten or wrong.
    elsewhere = [path for path in recipe_keys() if path.split(".")[-1] == key]
    if 0 < len(elsewhere) <= MOST:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return ""


def recipe_keys() -> list[str]:
    """Return the dotted path of every field of a recipe; those of variants are not known here."""
    return list(_paths(Recipe, ""))


def _paths(section: type[BaseModel], above: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        path = f"{above}{name}"
        yield path
        inner = _plain(field.annotation)
        if _is_section(inner) and not issubclass(inner, Variant):
            yield from _paths(inner, f"{path}.")


def _section_at(place: Sequence[str | int], recipe: Mapping[str, Any]) -> type[BaseModel] | None:
    """Return the section or variant at a place of a recipe; None if that is not known."""
    kind: Any = Recipe
    value: Any = recipe
    for part in place:
        kind = _inside(kind, part)
        value = _entry(value, part)
        if kind is None:
            return None
        if isinstance(kind, type) and issubclass(kind, Variant):
            kind = _variant(kind, value)
    return kind if _is_section(kind) else None


def _inside(kind: Any, part: str | int) -> Any:
    """Return the type of one field or entry of a type; None if that is not known."""
    if _is_section(kind):
        field = kind.model_fields.get(part)
        return None if field is None else _plain(field.annotation)
    # Entries of a list, a tuple or a mapping are of the last type that it names.
    entries = [argument for argument in get_args(kind) if argument is not Ellipsis]
    return _plain(entries[-1]) if entries else None


def _variant(base: type[Variant], value: Any) -> type[BaseModel] | None:
    """Return the class of the variant that a recipe names."""
    registry = base.registry
    name = value
    if isinstance(value, Mapping):
        name = value.get(registry.key, registry.default)
    try:
        found: type[BaseModel] = registry.class_of(name)
    except ValueError:
        return None
    return found


def _entry(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _plain(annotation: Any) -> Any:
    """Return a type without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        others = [one for one in get_args(annotation) if one is not type(None)]
        return _plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(section: type[BaseModel]) -> list[str]:
    names = list(section.model_fields)
    if issubclass(section, Variant):
        names.append(section.registry.key)
    return names
