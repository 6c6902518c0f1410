"""Serve the viewer on this machine until somebody stops it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import uvicorn

from axpo.errors import AxpoError
from axpo.viewer.app import make_app
from axpo.viewer.following import Follower
from axpo.viewer.site import Site
from axpo.viewer.watched import watch

LOOPBACK = "127.0.0.1"
PORT = 8600
"""If it is free and no other is asked for."""


def serve(
    paths: Sequence[Path],
    port: int | None = None,
    cache: Path | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve pages over runs until SIGINT or SIGTERM.

    Args:
        paths: run directories, or folders of them.
        port: on the loopback address. Default: `PORT`, or a free one.
        cache: folder of the catalogs. Default: in the user's cache folder.
        tell: gets the address, once it is served.

    Raises:
        AxpoError: there is no run, or the port is taken.
    """
    runs = watch(paths, cache)
    listening = _bound(port)
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    with closing(Follower([run.catalog for run in runs])) as follower:
        app = make_app(Site(runs, follower), token, f"axpo-view-{port}")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off"
        )
        tell(f"http://{LOOPBACK}:{port}/?token={token}")
        # uvicorn ends in good order, and passes Ctrl-C on.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _bound(port: int | None) -> socket.socket:
    """Return a socket that listens on the loopback address, and on no other."""
    wanted = [PORT, 0] if port is None else [port]
    for one in wanted:
        listening = socket.socket()
        # A viewer that was just ended leaves its port waiting.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, one))
        except OSError:
            listening.close()
            continue
        # Who opens the address at once waits for the server and is not refused.
        listening.listen()
        return listening
    raise AxpoError(f"port {port} is taken: choose another one with --port, or 0 for a free one")
