"""Control groups: what they count, who is to blame for memory, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tool_server.sandbox import cgroup_trees, cgroups, layers, places
from tool_server.sandbox.cgroup import GroupV1, GroupV2, MemoryEvents
from tool_server.sandbox.cgroups import Groups, NoGroups
from tool_server.sandbox.options import Isolation, PythonOptions
from tool_server.sandbox.places import OutOfMemory
from tool_server.tool import ToolStopped, ToolUnavailable

ALLOCATE = "x = bytearray(200 << 20)\nlen(x)"
SMALL = 64 << 20


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """Open the groups of this machine, of whichever version they are."""
    try:
        opened = Groups.open()
    except NoGroups as error:
        pytest.skip(f"no control groups here: {error}")
    yield opened
    opened.close()


def is_confined(call: psutil.Process) -> bool:
    """Return whether the layers of a call are in force."""
    return "Seccomp:\t2" in Path(f"/proc/{call.pid}/status").read_text()


def test_a_call_over_its_own_memory_is_the_policys(sandbox, groups, monkeypatch):
    own = sandbox.pool._places
    small = own._options.model_copy(update={"memory_mib": 64})
    monkeypatch.setattr(own, "_options", small)
    with pytest.raises(ToolStopped, match=r"^\[stopped: more than 1024 MiB of memory\]$"):
        sandbox.run(ALLOCATE)


def test_memory_that_the_machine_lacks_is_infrastructure(sandbox, groups):
    """The group around all calls stands for the machine: its limit is nobody's own."""
    folder = sandbox.pool._places._groups._folders["memory"]
    names = ("memory.limit_in_bytes", "memory.max")
    limit = next(folder / name for name in names if (folder / name).exists())
    before = limit.read_text()
    limit.write_text(str(SMALL))
    try:
        with pytest.raises(ToolUnavailable, match="the machine is out of memory"):
            sandbox.run(ALLOCATE)
    finally:
        limit.write_text(before)
    assert sandbox.run(ALLOCATE)[0] == str(200 << 20)


def test_a_kill_without_evidence_is_the_policys(sandbox):
    async def scenario() -> None:
        call = asyncio.ensure_future(sandbox.arun("import time\ntime.sleep(60)"))
        zygote = psutil.Process(sandbox.pool.pids()[0])
        # Seccomp is the last layer: the code runs soon after it.
        while not any(map(is_confined, zygote.children())):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        os.kill(zygote.children()[0].pid, signal.SIGKILL)
        await call

    with pytest.raises(ToolStopped, match=r"^\[stopped: the process was killed\]$"):
        asyncio.run(scenario())


def test_the_kernel_takes_a_jail_before_engines_and_ranks(sandbox):
    for pid in sandbox.pool.pids():
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_each_call_has_a_group_of_its_own_with_limits(sandbox, groups):
    async def scenario() -> list[str]:
        calls = [asyncio.ensure_future(sandbox.arun("import time\ntime.sleep(1)")) for _ in "ab"]
        zygote = psutil.Process(sandbox.pool.pids()[0])
        while sum(map(is_confined, zygote.children())) < 2:
            await asyncio.sleep(0.01)
        pids = [child.pid for child in zygote.children()]
        own = [Path(f"/proc/{pid}/cgroup").read_text() for pid in pids]
        await asyncio.gather(*calls)
        return own

    own = asyncio.run(scenario())
    assert len(set(own)) == 2
    assert all("/call-" in groups for groups in own)


def test_limits_are_written_as_version_2_wants_them(tmp_path):
    folder = tmp_path / "call-0"
    group = GroupV2(dict.fromkeys(("memory", "pids", "cpu"), folder))
    (folder / "memory.swap.max").touch()
    group.limit(memory=SMALL, pids=9)
    written = {file.name: file.read_text() for file in folder.iterdir()}
    assert written == {
        "memory.max": "67108864",
        "memory.swap.max": "0",
        "pids.max": "9",
        "cpu.max": "100000 100000",
    }
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\n")
    assert group.memory_events() == MemoryEvents(kills=3, refusals=2)
    assert group.joining() == [folder / "cgroup.procs"]


def test_limits_are_written_as_version_1_wants_them(tmp_path):
    folders = {name: tmp_path / name for name in ("memory", "pids", "cpu")}
    group = GroupV1(folders)
    (folders["memory"] / "memory.limit_in_bytes").touch()
    group.limit(memory=SMALL, pids=9)
    assert (folders["memory"] / "memory.limit_in_bytes").read_text() == "67108864"
    assert (folders["pids"] / "pids.max").read_text() == "9"
    assert (folders["cpu"] / "cpu.cfs_quota_us").read_text() == "100000"
    (folders["memory"] / "memory.oom_control").write_text("under_oom 0\noom_kill 3\n")
    used = folders["memory"] / "memory.max_usage_in_bytes"
    used.write_text("66000000\n")
    (folders["memory"] / "memory.memsw.max_usage_in_bytes").write_text("5\n")
    assert group.memory_events() == MemoryEvents(kills=3, refusals=0)
    used.write_text("67108864\n")
    assert group.memory_events() == MemoryEvents(kills=3, refusals=1)
    assert group.begin() == MemoryEvents(kills=3, refusals=0)
    assert len(group.joining()) == 3


MOUNTS = """\
30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
41 32 0:36 /docker/abc /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
42 32 0:37 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct
43 32 0:38 / /proc rw - proc proc rw
"""


def test_the_mounted_trees_are_read():
    unified, memory, cpu = cgroup_trees._mounts(MOUNTS)
    assert (unified.root, str(unified.point), unified.controllers) == ("/", "/sys/fs/cgroup", None)
    assert memory.controllers == ("rw", "memory")
    assert cpu.root == "/docker/abc"
    # In a container the tree begins at the container's own group.
    assert memory.folder("/docker/abc") == Path("/sys/fs/cgroup/memory")
    assert memory.folder("/elsewhere") == Path("/sys/fs/cgroup/memory")
    own = cgroup_trees._own("4:cpu,cpuacct:/a\n2:memory:/b/c\n0::/user.slice\n")
    assert own == {"cpu": "/a", "cpuacct": "/a", "memory": "/b/c", "": "/user.slice"}


def test_groups_are_made_where_their_controllers_are(tmp_path):
    """The server's own group has none to give, so they are made beside it."""
    server = tmp_path / "user.slice" / "server.scope"
    server.mkdir(parents=True)
    (server / "cgroup.controllers").write_text("pids\n")
    (server.parent / "cgroup.controllers").write_text("cpu io memory pids\n")
    (server.parent / "cgroup.subtree_control").write_text("memory pids\n")
    mount, reasons = cgroup_trees.Mount("/", tmp_path, None), []
    ((version, bases),) = cgroup_trees._candidates_v2(mount, "/user.slice/server.scope", reasons)
    assert version == 2
    assert bases == dict.fromkeys(("memory", "pids", "cpu"), server.parent)
    assert (server.parent / "cgroup.subtree_control").read_text() == "+cpu"
    assert reasons == [f"{server} has no memory"]


def test_the_groups_of_a_killed_server_are_removed_and_those_of_others_stay(tmp_path):
    (tmp_path / "axpo-1-dead" / "call-0").mkdir(parents=True)
    living = cgroups._Home.make(tmp_path)
    (living.folder / "call-0").mkdir()
    assert not (tmp_path / "axpo-1-dead").exists()
    next_server = cgroups._Home.make(tmp_path)
    assert (living.folder / "call-0").exists()
    assert next_server.removed()
    (living.folder / "call-0").rmdir()
    assert living.removed()
    assert list(tmp_path.iterdir()) == []


def test_without_groups_the_check_says_so_and_the_machines_count_is_the_evidence(
    monkeypatch, tmp_path
):
    def refuse() -> Groups:
        raise NoGroups("read-only")

    monkeypatch.setattr(Groups, "open", refuse)
    row = layers._cgroup()
    assert (row.state, row.needed) == ("absent", False)
    assert row.detail.startswith("read-only; each call still has RLIMITs and counters of its own")
    monkeypatch.setattr(places, "VMSTAT", tmp_path / "vmstat")
    own = places.Places(PythonOptions(), Isolation())
    (tmp_path / "vmstat").write_text("pgfault 7\noom_kill 3\n")
    with own.take(0) as place:
        assert place.out_of_memory() is None
        (tmp_path / "vmstat").write_text("pgfault 8\noom_kill 4\n")
        assert place.out_of_memory() is OutOfMemory.MACHINE


def test_calls_at_once_are_different_users_without_namespaces():
    own = places.Places(PythonOptions(jail_uid=50_000), Isolation(namespaces=False, landlock=7))
    with own.take(0) as first, own.take(0) as second:
        assert (first.user, second.user) == (50_001, 50_002)
    with own.take(0) as third:
        assert third.user == 50_001
    own.close()


def test_trees_that_cannot_be_read_are_no_groups(monkeypatch):
    def broken(reasons):
        reasons.append("/sys/fs/cgroup has no memory")
        raise PermissionError("cgroup.controllers")
        yield

    monkeypatch.setattr(cgroups, "candidates", broken)
    with pytest.raises(NoGroups, match=r"^/sys/fs/cgroup has no memory; cgroup.controllers$"):
        Groups.open()
