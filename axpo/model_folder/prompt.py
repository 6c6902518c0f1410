"""Count what every prompt has, whatever the question: the system text and the tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.tasks.task import one_line
from rollout_workers.chat import Chat
from tool_server.arguments import define
from tool_server.config import ToolConfig
from tool_server.functions import open_function
from tool_server.server import schema
from tool_server.tool import ToolCall

Schemas = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt without question."""

    training: int
    of_tools: int  # of `training`
    evaluation: int
    uncounted: tuple[str, ...]  # tools that say what the policy reads of them only when they run

    @property
    def longest(self) -> int:
        """Return the tokens of the longer prompt."""
        return max(self.training, self.evaluation)

    @property
    def lines(self) -> tuple[str, ...]:
        """Return what `axpo check` prints."""
        line = f"prompt without question: {self.training} tokens, of them tools: {self.of_tools}"
        if self.evaluation != self.training:
            line += f"; in evaluations {self.evaluation} tokens"
        return (line,)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what could not be counted."""
        if not self.uncounted:
            return ()
        names = ", ".join(self.uncounted)
        return (f"not counted in the prompt: {names} (known only when it runs)",)


def prompt_of(recipe: Recipe, chat: Chat) -> Prompt:
    """Render an empty question with the recipe's tools, and count its tokens.

    Raises:
        ValueError: the chat template does not render it.
        AxpoError: the task cannot be loaded.
    """
    system = _system(recipe)
    training, uncounted = _schemas(recipe.tools.tools.items())
    added, more = _schemas(recipe.evaluation.tools.items())
    uncounted += more + [server.label for server in recipe.tools.mcp]

    def tokens(tools: Sequence[dict[str, Any]]) -> int:
        return len(chat.prompt("", (), list(tools), system))

    try:
        counts = tokens([]), tokens(training), tokens(training + added)
    except Exception as error:  # of Jinja: a template may be wrong in any way
        raise ValueError(f"the chat template does not render: {one_line(error)}") from None
    bare, with_tools, evaluation = counts
    return Prompt(with_tools, with_tools - bare, evaluation, tuple(uncounted))


def _system(recipe: Recipe) -> str | None:
    try:
        return recipe.task.load().system
    except AxpoError:
        raise
    except Exception as error:  # the class may be the user's: anything may happen in it
        raise AxpoError(f"{recipe.task.label}: {one_line(error)}") from error


def _schemas(tools: Iterable[tuple[str, ToolConfig]]) -> tuple[Schemas, list[str]]:
    """Return the schemas of tools, and the names of those that must be open to say theirs."""
    schemas: Schemas = []
    unknown: list[str] = []
    for name, tool in tools:
        found = schema_of(name, tool)
        if found is None:
            unknown.append(name)
        else:
            schemas.append(found)
    return schemas, unknown


def schema_of(name: str, tool: ToolConfig) -> dict[str, Any] | None:
    """Return what the policy reads about a tool, without opening it; None: only then it says."""
    if tool.function is not None:
        return schema(open_function(name, tool.function))
    shown = tool.kind_as(name).shown()
    if shown is None:
        return None
    return schema(define(name, *shown, _not_open))


def _not_open(call: ToolCall) -> NoReturn:
    raise AssertionError("a tool that is only described is not called")
