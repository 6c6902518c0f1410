"""Print the IPv4 address at which other nodes reach this one: `python address.py [INTERFACE]`.

`hostname --ip-address` says 127.0.1.1 or 127.0.0.1 where /etc/hosts gives the host's own name to
the loopback interface, as Debian's does.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator

from learner.network import interface_address

ELSEWHERE = ("192.0.2.1", 9)
"""An address that nobody has (RFC 5737). Nothing is sent to it: the kernel only names a route."""


def address(interface: str | None = None) -> str:
    """Return the address of this node.

    Args:
        interface: whose address; None: what the host's name leads to, else that of the route to
            other networks, else that of the first interface.

    Raises:
        OSError: the interface has no IPv4 address, or only the loopback interface has one.
    """
    if interface is not None:
        return interface_address(interface)
    for candidate in (*of_name(), *of_route(), *of_interfaces()):
        if reachable(candidate):
            return candidate
    raise OSError("no interface but the loopback has an IPv4 address; AXPO_INTERFACE names one")


def reachable(candidate: str) -> bool:
    """Return whether other nodes can reach this address."""
    found = ipaddress.ip_address(candidate)
    return not (found.is_loopback or found.is_link_local or found.is_unspecified)


def of_name() -> list[str]:
    """Return the addresses that the host's name leads to here."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return []
    return [str(place[0]) for *_, place in found]


def of_route() -> list[str]:
    """Return the address from which this node would reach another network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:
            return []  # a network of its own, without a way out
        own: str = probe.getsockname()[0]
        return [own]


def of_interfaces() -> Iterator[str]:
    """Yield the addresses of the interfaces that have one."""
    for _, name in socket.if_nameindex():
        try:
            yield interface_address(name)
        except OSError:
            continue


if __name__ == "__main__":
    try:
        print(address(*sys.argv[1:2]))
    except OSError as error:
        sys.exit(f"address of {socket.gethostname()}: {' '.join(sys.argv[1:2])} {error}")
