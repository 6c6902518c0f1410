"""Every attack of the list, against the real sandbox.

After each, the next call is right and on time, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from tool_server.sandbox.attack_list import ATTACKS, Attack
from tool_server.sandbox.attacks import Canaries, Traces, run_attack


@pytest.fixture(scope="module")
def traces(sandbox) -> Iterator[Traces]:
    async def baseline() -> Traces:
        """Look at the sandbox on a loop, as the attacks run: a loop has descriptors of its own."""
        await sandbox.arun("1")
        return Traces(sandbox.pool, canaries)

    with Canaries.out() as canaries:
        yield asyncio.run(baseline())


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.number} {attack.name}")
def test_an_attack_is_refused_or_contained(attack: Attack, sandbox, traces):
    result = asyncio.run(run_attack(attack, sandbox.tool, traces))
    assert result.held, result.outcome


def test_the_list_has_every_kind_of_attack():
    assert {attack.number for attack in ATTACKS} == set(range(1, 63))


def test_an_attack_that_succeeds_is_seen(sandbox, traces):
    leaking = Attack(0, "prints the secret", "done", f"print({traces.canaries.secret!r}, 'done')")
    assert "it got through" in asyncio.run(run_attack(leaking, sandbox.tool, traces)).outcome
    other = Attack(0, "something else", "PermissionError", "print('done')")
    assert "another answer" in asyncio.run(run_attack(other, sandbox.tool, traces)).outcome


def test_what_an_attack_leaves_is_seen(sandbox):
    """A pipe and a socket of the server's, and a changed file of the host's."""
    with Canaries.out() as canaries:
        traces = Traces(sandbox.pool, canaries)
        assert traces.left() == []
        read, write = os.pipe()
        assert any("descriptors of the server" in trace for trace in traces.left())
        os.close(read)
        os.close(write)
        assert traces.left() == []
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert any("descriptors of the server" in trace for trace in traces.left())
        for end in ends:
            end.close()
        canaries.file.chmod(0o600)
        assert any("host" in trace for trace in traces.left())
