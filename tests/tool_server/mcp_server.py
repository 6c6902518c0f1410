"""A real MCP server with the official SDK, for the tests: `python mcp_server.py [PORT | stubborn]`.

Without a port it speaks on stdin and stdout. A stubborn one has a child, and goes on when those are
closed, whatever signal it gets.
"""

import io
import os
import signal
import subprocess
import sys
import time
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

server = MCPServer("tests")


@server.tool()
def add(a: int, b: Annotated[int, Field(ge=0)]) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def picture(side: int, broken: bool = False) -> list:
    """Draw a red square."""
    from PIL import Image as Drawing

    file = io.BytesIO()
    Drawing.new("RGB", (side, side), "red").save(file, "PNG")
    data = b"GIF89a" if broken else file.getvalue()
    return ["a square", Image(data=data, format="png")]


@server.tool()
def environment() -> str:
    """List the environment."""
    return " ".join(sorted(os.environ))


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("not today")


@server.tool()
def sleep(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "slept"


@server.tool()
def exit_now() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


@server.tool()
def process() -> str:
    """Return the server's process id."""
    return str(os.getpid())


if __name__ == "__main__":
    if sys.argv[1:] == ["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        server.run("stdio")
        time.sleep(600)
    elif len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
