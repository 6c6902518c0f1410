"""`axpo tools list|call|check`: what a recipe's tools are, one call of one of them, and whether the sandbox holds on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.errors import AxpoError

if TYPE_CHECKING:
    from tool_server.config import ToolServerConfig
    from tool_server.sandbox.options import PythonOptions
    from tool_server.server import ToolServer

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
    """With a recipe, its tools as the policy sees them (this opens them); without, the kinds of tools there are."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    if recipe is None:
        from tool_server.config import tool_kinds

        for column in ("kind", "options"):
            table.add_column(column, overflow="fold")
        for name, _ in tool_kinds.described():
            fields = tool_kinds.class_of(name).model_fields.items()
            shown = [
                f"{field}={f.default}" if isinstance(f.default, str | int | float) else field
                for field, f in fields
            ]
            table.add_row(name, Text(", ".join(shown)))
        console.print(table)
        return
    config = _config(recipe)

    async def offers(server: ToolServer) -> dict[str, Any]:
        return await server.offers()

    for column in ("tool", "arguments", "description"):
        table.add_column(column, overflow="fold")
    for name, offer in _with_server(config, offers).items():
        function = offer.schema["function"]
        required = function["parameters"].get("required", [])
        arguments = [
            field if field in required else f"[{field}]"
            for field in function["parameters"].get("properties", {})
        ]
        table.add_row(name, Text(" ".join(arguments)), Text(function["description"]))
    console.print(table)


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
    """Call one tool once, print its text, save its images. Exit code 1 where the answer is not `ok`."""
    from PIL import Image

    from tool_server.images import ImageError, decode
    from tool_server.tool import ToolResult, ToolStatus

    try:
        written = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise AxpoError(f"JSON: not readable: {error}") from None
    images = []
    for file in image or ():
        try:
            images.append(decode(file))
        except ImageError as error:
            raise AxpoError(f"--image {file}: {error}") from None
    config = _config(recipe, None if recipe else name)
    # Opening takes time and keys: only what the call may need.
    wanted = {"mcp": ()} if name in config.tools else {}
    config = config.model_copy(
        update=wanted | {"tools": {n: entry for n, entry in config.tools.items() if n == name}}
    )
    if not config.tools and not config.mcp:
        from tool_server.config import tool_kinds

        kinds = [kind for kind, _ in tool_kinds.described()]
        known = ", ".join(_config(recipe).tools if recipe else kinds)
        raise AxpoError(f"unknown tool {name!r}, known: {known}")

    async def one(server: ToolServer) -> ToolResult:
        return await server.call(name, written, images)

    result = _with_server(config, one)
    if result.text:
        console.print(Text(result.text), soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(result.images):
        file = out / f"{name}_{index}.png"
        Image.fromarray(pixels).save(file)
        console.print(
            f"image {file}: {pixels.shape[1]} x {pixels.shape[0]}", highlight=False, soft_wrap=True
        )
    if result.status is not ToolStatus.OK or result.text == "":
        console.print(f"{result.status} after {result.seconds:.2f} s", style="dim", highlight=False)
    if result.status is not ToolStatus.OK:
        raise typer.Exit(1)


@app.command()
def check(recipe: RecipeFile = None) -> None:
    """Print every layer of the python tool's sandbox, then run the attack list against it. Exit code 1 where something does not hold."""
    from tool_server.sandbox.layers import check as check_layers

    options = _python_options(recipe)
    rows = check_layers(options)
    table = Table("layer", "", box=None, pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold")
    for row in rows:
        state = Text("present", "green") if row.present else Text("MISSING", "red")
        table.add_row(row.layer, state, Text(row.detail))
    console.print(table)
    failed = asyncio.run(_attack(options))
    if failed or not all(row.present for row in rows):
        raise typer.Exit(1)


async def _attack(options: PythonOptions) -> int:
    """Runs the attack list and prints one line for each; returns how many got through."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tool_server.python import build
    from tool_server.sandbox.attack_list import ATTACKS
    from tool_server.sandbox.attacks import attack_options, run_attacks
    from tool_server.tool import ToolUnavailable

    failed = 0
    columns = (
        TextColumn("attack"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
    )
    try:
        tool, pool = build("python", attack_options(options))
        progress = Progress(*columns, console=console, transient=True)
        with contextlib.closing(pool), progress:
            task = progress.add_task("", total=len(ATTACKS))
            async for result in run_attacks(tool, pool):
                failed += not result.held
                verdict = Text("held", "green") if result.held else Text("FAILED", "red")
                line = Text.assemble(
                    f"{result.number:>3}  ", verdict, f"  {result.name}: ", (result.outcome, "dim")
                )
                progress.console.print(line, overflow="ellipsis", no_wrap=result.held)
                progress.update(task, advance=1, description=result.name)
    except ToolUnavailable as error:
        raise AxpoError(str(error).splitlines()[0]) from None  # the rest is the table above
    console.print(
        f"{len(ATTACKS) - failed} of {len(ATTACKS)} attacks held",
        style="red" if failed else "green",
        highlight=False,
    )
    return failed


def _config(recipe: Path | None, only: str | None = None) -> ToolServerConfig:
    """A recipe's tools, those of evaluations after those of training; without one, the kind `only` with its defaults."""
    from pydantic import ValidationError

    from tool_server.config import ToolServerConfig

    if recipe is not None:
        from axpo.config import load_recipe

        return load_recipe(recipe).all_tools
    try:
        return ToolServerConfig.model_validate({"tools": {only: {}}})
    except ValidationError as error:
        raise AxpoError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _with_server(config: ToolServerConfig, work: Callable[[ToolServer], Awaitable[T]]) -> T:
    """Runs `work` on a server in this process. Raises AxpoError where a tool cannot start."""
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


def _python_options(recipe: Path | None) -> PythonOptions:
    from tool_server.sandbox.options import PythonOptions

    if recipe is None:
        return PythonOptions()
    tools = _config(recipe).tools
    entries = [
        entry
        for name, entry in tools.items()
        if (entry.kind or name) == "python" and entry.function is None
    ]
    if not entries:
        raise AxpoError(f"{recipe}: tools.tools has no python tool to check")
    return PythonOptions.model_validate(entries[0].options)
