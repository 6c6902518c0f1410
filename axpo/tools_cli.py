"""`axpo tools list|call|check`.

What a recipe's tools are, one call of one of them, and whether the sandbox holds on this machine.
Commands import what they need when they run, so that `axpo --help` is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.errors import AxpoError
from axpo.inputs import print_line

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from tool_server.config import ToolServerConfig
    from tool_server.sandbox.attacks import AttackResult
    from tool_server.sandbox.layers import Row
    from tool_server.sandbox.options import PythonOptions
    from tool_server.server import ToolServer
    from tool_server.tool import Pixels, ToolResult

T = TypeVar("T")

app = typer.Typer(help="The tools that a policy may call.", no_args_is_help=True)
console = Console()

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="recipe whose `tools` and `evaluation.tools` are meant. Default: tools as they come",
    ),
]


@app.command(name="list")
def list_tools(recipe: RecipeFile = None) -> None:
    """List a recipe's tools as the policy sees them; without a recipe, the kinds of tools.

    The tools of the recipe are opened for it.
    """
    console.print(_kinds() if recipe is None else _offers(recipe))


@app.command()
def call(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="the tool, as the policy would name it")
    ],
    arguments: Annotated[
        str, typer.Argument(metavar="JSON", help='its arguments, e.g. \'{"code": "1 + 1"}\'')
    ],
    recipe: RecipeFile = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="an image of the question; repeatable")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="folder for the images of the answer")
    ] = Path("."),
) -> None:
    """Call one tool once, print its text and save its images.

    The exit code is 1 if the answer is not `ok`.
    """
    from tool_server.tool import ToolStatus

    written = _read_json(arguments)
    images = _read_images(image or ())
    config = _config_for(name, recipe)

    async def one(server: ToolServer) -> ToolResult:
        return await server.call(name, written, images)

    result = _with_server(config, one)
    _print_result(result, name, out)
    if result.status is not ToolStatus.OK:
        raise typer.Exit(1)


@app.command()
def check(recipe: RecipeFile = None) -> None:
    """Print every layer of the python tool's sandbox, then run the attack list against it.

    The exit code is 1 if a layer is missing or an attack gets through.
    """
    from tool_server.sandbox.layers import check as check_layers

    options = _python_options(recipe)
    layers = check_layers(options)
    console.print(_layers(layers))
    failed = asyncio.run(_attack(options))
    if failed or any(layer.needed and not layer.present for layer in layers):
        raise typer.Exit(1)


def _kinds() -> Table:
    """Return a table of the kinds of tools and their options."""
    from tool_server.config import tool_kinds

    table = _table("kind", "options")
    for name, _ in tool_kinds.described():
        fields = tool_kinds.class_of(name).model_fields
        options = [_option(field, info) for field, info in fields.items()]
        table.add_row(name, Text(", ".join(options)))
    return table


def _option(name: str, info: FieldInfo) -> str:
    """Return an option with its default, if that says something in one word."""
    simple = isinstance(info.default, str | int | float)
    return f"{name}={info.default}" if simple else name


def _offers(recipe: Path) -> Table:
    """Return a table of a recipe's tools, with their arguments; optional ones in brackets."""

    async def offers(server: ToolServer) -> dict[str, Any]:
        return await server.offers()

    table = _table("tool", "arguments", "description")
    for name, offer in _with_server(_config(recipe), offers).items():
        function = offer.schema["function"]
        parameters = function["parameters"]
        required = parameters.get("required", [])
        arguments = [
            field if field in required else f"[{field}]"
            for field in parameters.get("properties", {})
        ]
        table.add_row(name, _text(" ".join(arguments)), _text(function["description"]))
    return table


def _text(text: str) -> Text:
    """Return what a tool or a server says, for a terminal that must not obey it."""
    from axpo.texts import printable

    return Text(printable(text))


STYLES = {"present": "green", "absent": "yellow", "MISSING": "red"}


def _layers(rows: Sequence[Row]) -> Table:
    """Return a table of the sandbox's layers: present or missing, and why."""
    table = Table("layer", "", box=None, pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold")
    for row in rows:
        state = Text(row.state, STYLES[row.state])
        table.add_row(row.layer, state, Text(row.detail))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _read_json(text: str) -> Any:
    # Any value may come out: what a tool makes of its arguments is its own affair.
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AxpoError(f"JSON: not readable: {error}") from None


def _read_images(files: Sequence[Path]) -> list[Pixels]:
    from tool_server.images import ImageError, decode

    images = []
    for file in files:
        try:
            images.append(decode(file))
        except ImageError as error:
            raise AxpoError(f"--image {file}: {error}") from None
    return images


def _config_for(name: str, recipe: Path | None) -> ToolServerConfig:
    """Return the tools that a call of `name` may need: opening the others takes time and keys.

    Raises:
        AxpoError: there is no such tool, or the recipe is not valid.
    """
    config = _config_of_kind(name) if recipe is None else _config(recipe)
    if name in config.tools:
        return config.model_copy(update={"mcp": (), "tools": {name: config.tools[name]}})
    if config.mcp:
        # What an MCP server offers is known only when it is open.
        return config.model_copy(update={"tools": {}})
    raise AxpoError(f"unknown tool {name!r}, known: {', '.join(config.tools)}")


def _config(recipe: Path) -> ToolServerConfig:
    """Return a recipe's tools, those of evaluations after those of training."""
    from axpo.config import load_recipe

    return load_recipe(recipe).all_tools


def _config_of_kind(kind: str) -> ToolServerConfig:
    """Return one tool of a kind, with its defaults. Raises AxpoError if there is no such kind."""
    from pydantic import ValidationError

    from tool_server.config import ToolServerConfig

    try:
        return ToolServerConfig.model_validate({"tools": {kind: {}}})
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise AxpoError(message.removeprefix("Value error, ")) from None


def _with_server(config: ToolServerConfig, work: Callable[[ToolServer], Awaitable[T]]) -> T:
    """Run `work` on a server in this process. Raises AxpoError if a tool cannot start."""
    from tool_server.server import ToolServer
    from tool_server.tool import ToolUnavailable

    async def run() -> T:
        server = ToolServer(config)
        try:
            with console.status("opening"):
                await server.ping()
            return await work(server)
        except ToolUnavailable as error:
            raise AxpoError(str(error)) from None
        finally:
            await server.close()

    return asyncio.run(run())


def _print_result(result: ToolResult, name: str, out: Path) -> None:
    """Print the text of an answer and save its images in the folder `out`."""
    from PIL import Image

    from tool_server.tool import ToolStatus

    if result.text:
        console.print(_text(result.text), soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(result.images):
        file = out / f"{name}_{index}.png"
        Image.fromarray(pixels).save(file)
        height, width, _ = pixels.shape
        print_line(f"image {file}: {width} x {height}", console)
    # An answer without text says at least that there was one.
    if result.status is not ToolStatus.OK or result.text == "":
        console.print(f"{result.status} after {result.seconds:.2f} s", style="dim", highlight=False)


def _python_options(recipe: Path | None) -> PythonOptions:
    """Return the options of a recipe's first python tool, or the defaults without a recipe."""
    from tool_server.sandbox.options import PythonOptions

    if recipe is None:
        return PythonOptions()
    for name, entry in _config(recipe).tools.items():
        if entry.function is not None:
            continue
        # The options of a kind are its fields, so a python tool is a PythonOptions.
        kind = entry.kind_as(name)
        if isinstance(kind, PythonOptions):
            return kind
    raise AxpoError(f"{recipe}: tools.tools has no python tool to check")


async def _attack(options: PythonOptions) -> int:
    """Run the attack list, print a line for each attack, and return how many got through."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tool_server.python import build
    from tool_server.sandbox.attack_list import ATTACKS
    from tool_server.sandbox.attacks import attack_options, run_attacks
    from tool_server.tool import ToolUnavailable

    bar = TextColumn("attack"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    failed = 0
    try:
        tool, pool = build("python", attack_options(options))
        progress = Progress(*bar, console=console, transient=True)
        with contextlib.closing(pool), progress:
            task = progress.add_task("", total=len(ATTACKS))
            async for result in run_attacks(tool, pool):
                failed += not result.held
                line = _attack_line(result)
                # A failure is shown in full.
                progress.console.print(line, overflow="ellipsis", no_wrap=result.held)
                progress.update(task, advance=1, description=result.name)
    except ToolUnavailable as error:
        # Its other lines repeat the table of layers, which is printed already.
        raise AxpoError(str(error).splitlines()[0]) from None
    console.print(
        f"{len(ATTACKS) - failed} of {len(ATTACKS)} attacks held",
        style="red" if failed else "green",
        highlight=False,
    )
    return failed


def _attack_line(result: AttackResult) -> Text:
    verdict = Text("held", "green") if result.held else Text("FAILED", "red")
    outcome = (_text(result.outcome).plain, "dim")
    return Text.assemble(f"{result.number:>3}  ", verdict, f"  {result.name}: ", outcome)
