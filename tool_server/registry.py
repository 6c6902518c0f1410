"""The tools there are, the OpenAI function schema of each, and the checks on what a policy wrote."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from tool_server.tool import Tool, ToolError
from tool_server.zoom import IMAGE_ZOOM_IN

TOOLS: dict[str, Tool] = {tool.name: tool for tool in (IMAGE_ZOOM_IN,)}

MAX_ECHO = 40
"""Characters of the policy's own text that a message repeats: enough to recognise, too few to flood the context."""


def schema(tool: Tool) -> dict[str, Any]:
    """The OpenAI function schema, as Qwen's chat template renders it inside `<tools>`.

    Pydantic's titles and `additionalProperties` are left out: they cost prompt tokens and tell the policy nothing.
    """
    model = tool.arguments.model_json_schema()
    properties = {name: {k: v for k, v in p.items() if k != "title"} for name, p in model["properties"].items()}
    parameters = {"type": "object", "properties": properties, "required": model.get("required", [])}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": parameters}}


def parse_arguments(tool: Tool, arguments: Any) -> BaseModel:
    """Arguments as the tool's own model; raises ToolError with a one-line message about the first fault."""
    if not isinstance(arguments, dict):
        raise ToolError("arguments must be an object")
    try:
        return tool.arguments.model_validate(arguments)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(fault["loc"][0]) if fault["loc"] else "arguments"
    if fault["type"] == "missing":
        raise ToolError(f"{name} is missing")
    if fault["type"] == "extra_forbidden":
        raise ToolError(f"unknown argument {echo(name)}, known: {', '.join(tool.arguments.model_fields)}")
    raise ToolError(f"{name}: {fault['msg']}")


def echo(text: str) -> str:
    """The policy's own text, quoted and cut to `MAX_ECHO` characters."""
    return repr(text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "...")
