"""How ranks and engines find each other over the network: address, port, interface."""

from __future__ import annotations

import fcntl
import socket
import struct

from pydantic import BaseModel, ConfigDict, Field

_SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of an interface."""


class NetworkConfig(BaseModel):
    """The `network` section of a recipe. On one node nothing of it is needed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    interface: str | None = Field(
        None,
        min_length=1,
        description="network interface of every node that NCCL and gloo use, for example eth0; "
        "None: they choose",
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="address at which rank 0 listens for the other ranks; "
        "None: that of `interface`, or of its node in Ray",
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="port at which rank 0 listens; None: one that is free"
    )

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of ranks and engines."""
        if self.interface is None:
            return {}
        # NCCL takes prefixes of names; "=" asks for exactly this one.
        return {
            "NCCL_SOCKET_IFNAME": f"={self.interface}",
            "GLOO_SOCKET_IFNAME": self.interface,
        }

    def host(self, own: str) -> str:
        """Return the address of rank 0, called on its node; `own` is the node's address in Ray.

        Raises:
            OSError: there is no such interface, or it has no IPv4 address.
        """
        if self.address is not None:
            return self.address
        if self.interface is not None:
            return interface_address(self.interface)
        return own


def interface_address(name: str) -> str:
    """Return the IPv4 address of a network interface of this node.

    Raises:
        OSError: there is no such interface, or it has none.
    """
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    return socket.inet_ntoa(answer[20:24])


def interfaces() -> list[str]:
    """Return the names of this node's network interfaces."""
    return sorted(name for _, name in socket.if_nameindex())


def free_port() -> int:
    """Return a port that is free now."""
    # Asked for port 0, the kernel gives one that is free.
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
