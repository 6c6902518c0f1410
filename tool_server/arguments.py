"""Arguments of a tool: the JSON schema that the policy reads, and the check of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import PydanticCustomError

from tool_server.tool import Output, Tool, ToolCall, ToolError

MAX_ECHO = 40
"""Characters of the policy's own text that a message repeats: enough to recognise, too few to flood the context."""
MAX_SIZE = 131_072
"""Characters, and values besides text, of one call's arguments. The parser of a turn stops at 16,384; this is for every other way in."""


def parameters(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of an argument model. Pydantic's titles and `additionalProperties` cost prompt tokens and tell the policy nothing."""
    schema = model.model_json_schema()
    properties = {
        name: {k: v for k, v in p.items() if k != "title"}
        for name, p in schema["properties"].items()
    }
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {
        "type": "object",
        "properties": properties,
        "required": schema.get("required", []),
        **definitions,
    }


def parse(model: type[BaseModel], written: Any, *, as_json: bool = False) -> BaseModel:
    """What the policy wrote as the model; raises ToolError with a one-line message about the first fault.

    `as_json` reads it strictly as the JSON it was: a list fits a tuple, a string an enum, but no string a number.
    """
    if not isinstance(written, dict):
        raise ToolError("arguments must be an object")
    try:
        return (
            model.model_validate_json(json.dumps(written, allow_nan=False), strict=True)
            if as_json
            else model.model_validate(written)
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    except (TypeError, ValueError, RecursionError):
        raise ToolError("arguments are not JSON") from None
    name = str(fault["loc"][0]) if fault["loc"] else "arguments"
    if fault["type"] == "missing":
        raise ToolError(f"{name} is missing")
    if fault["type"] == "extra_forbidden":
        raise ToolError(f"unknown argument {echo(name)}, known: {', '.join(model.model_fields)}")
    raise ToolError(f"{name}: {fault['msg']}")


def too_large(written: Any) -> bool:
    """Whether arguments pass `MAX_SIZE`; looks at no more of them than it takes to know."""
    size, pending = 0, [written]
    while pending and size <= MAX_SIZE:
        value = pending.pop()
        size += len(value) if isinstance(value, str) else 1
        if isinstance(value, dict | list | tuple):
            if len(value) > MAX_SIZE:
                return True
            pending += (
                [part for item in value.items() for part in item]
                if isinstance(value, dict)
                else value
            )
        elif isinstance(value, int) and value.bit_length() > MAX_SIZE:
            return True
    return size > MAX_SIZE


def echo(text: str) -> str:
    """The policy's own text, quoted and cut to `MAX_ECHO` characters."""
    return repr(text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "...")


def integer(least: int, most: float = float("inf")) -> BeforeValidator:
    """An integer from `least` to `most`; 1.0 counts as 1, since JSON has one kind of number. Booleans and strings do not count."""
    expected = f"expected an integer from {least}" + (f" to {most}" if most < float("inf") else "")

    def check(value: Any) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= most
            or value % 1 != 0
        ):
            raise PydanticCustomError("integer", expected)
        return int(value)

    return BeforeValidator(check)


def define(
    name: str,
    description: str,
    arguments: type[BaseModel],
    run: Callable[[ToolCall], Output | Awaitable[Output]],
    *,
    pure: bool = False,
    close: Callable[[], None] = lambda: None,
) -> Tool:
    """A tool whose argument model gives both the schema the policy sees and the checks on what it wrote."""
    return Tool(
        name,
        description,
        parameters(arguments),
        lambda written: parse(arguments, written),
        run,
        pure,
        close,
    )
