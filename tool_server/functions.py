"""A user's Python function as a tool: the schema from its type hints, the descriptions from its docstring."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import to_json

from axpo.registry import find
from tool_server.arguments import parameters, parse
from tool_server.tool import Output, Tool, ToolCall


@dataclass(frozen=True)
class UserFunction:
    """A function that was found and understood."""

    function: Callable[..., Any]
    description: str
    arguments: type[BaseModel]
    call_parameter: str | None  # gets the ToolCall: images and earlier calls


def load(path: str) -> UserFunction:
    """The function at `package.module:name`. Raises ValueError with one line about what is wrong with it."""
    function = find(path)
    if not inspect.isfunction(function):
        raise ValueError(f"{path} is no function")
    return understand(function)


def understand(function: Callable[..., Any]) -> UserFunction:
    """Derive schema and description. Raises ValueError with one line."""
    from docstring_parser import parse

    docstring = parse(inspect.getdoc(function) or "")
    described = {
        param.arg_name: " ".join((param.description or "").split()) for param in docstring.params
    }
    description = " ".join((docstring.short_description or "").split())
    if not description:
        raise ValueError("needs a docstring: its first paragraph is what the policy reads")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ValueError(f"a type hint cannot be resolved: {error}") from error
    call_parameter, fields = None, {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"parameter {name!r}: only named parameters can be offered")
        if name not in hints:
            raise ValueError(f"parameter {name!r} has no type hint")
        if hints[name] is ToolCall:
            call_parameter = name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=described.get(name) or None))
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    try:
        arguments = create_model(f"{function.__name__}_arguments", __config__=config, **fields)  # type: ignore[call-overload]
        parameters(arguments)
    except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
        raise ValueError(
            f"its type hints give no JSON schema: {str(error).splitlines()[0]}"
        ) from error
    return UserFunction(function, description, arguments, call_parameter)


def open_function(name: str, path: str, pure: bool = False) -> Tool:
    """The function as a tool, offered as `name`."""
    user = load(path)

    def keywords(call: ToolCall) -> dict[str, Any]:
        given = {
            field: getattr(call.arguments, field) for field in type(call.arguments).model_fields
        }
        return given | ({user.call_parameter: call} if user.call_parameter else {})

    def plain(call: ToolCall) -> Output:
        return observation(user.function(**keywords(call)))

    async def coroutine(call: ToolCall) -> Output:
        return observation(await user.function(**keywords(call)))

    run = coroutine if inspect.iscoroutinefunction(user.function) else plain
    return Tool(
        name,
        user.description,
        parameters(user.arguments),
        lambda written: parse(user.arguments, written, as_json=True),
        run,
        pure,
    )


def observation(returned: Any) -> Output:
    """What a user's function returned, as text and images.

    A string is the text; a uint8 array [h, w, 3] an image; a pair (text, images) both; anything else is written as JSON.
    Raises TypeError where that is not possible.
    """
    if isinstance(returned, str):
        return returned, ()
    if isinstance(returned, np.ndarray):
        return "", (_image(returned),)
    match returned:
        case (str(text), list() | tuple() as images) if all(
            isinstance(image, np.ndarray) for image in images
        ):
            return text, tuple(_image(image) for image in images)
    return to_json(returned).decode(), ()


def _image(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise TypeError(
            f"an image is a uint8 array [h, w, 3], this is {array.dtype} {list(array.shape)}"
        )
    return array
