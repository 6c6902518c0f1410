"""The sandbox fails closed.

If a layer is missing, it refuses to start and says so. Only a layer that the recipe names may be
missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from axpo.scratch import PREFIX
from tool_server.sandbox import layers
from tool_server.sandbox.layers import check, isolation, table
from tool_server.sandbox.options import Isolation, Layer, PythonOptions
from tool_server.tool import ToolUnavailable

ROOT = Path(__file__).parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="this tier needs root")

DENIED = """
import errno, json, sys
import pyseccomp as seccomp
rules = seccomp.SyscallFilter(seccomp.ALLOW)
for name, error in json.loads(sys.argv[1]).items():
    rules.add_rule(seccomp.ERRNO(error), name)
rules.load()
"""

REPORT = """
import asyncio
from tool_server.python import build
from tool_server.sandbox.attack_list import ATTACKS
from tool_server.sandbox.attacks import Canaries, answer, attack_options
from tool_server.sandbox.options import PythonOptions
from tool_server.tool import ToolUnavailable
import re
options = attack_options(PythonOptions.model_validate(json.loads(sys.argv[2])))
numbers = json.loads(sys.argv[3])
try:
    tool, pool = build("python", options)
except ToolUnavailable as error:
    print("REFUSED", error)
    sys.exit()

async def answers(attack, canaries):
    at_once = 2 if attack.twice else 1
    return await asyncio.gather(*[answer(tool, attack.code, canaries) for _ in range(at_once)])

def holds(attack, canaries):
    texts = asyncio.run(answers(attack, canaries))
    got_through = any(canaries.escaped in text or canaries.secret in text for text in texts)
    return all(re.search(attack.wants, text) for text in texts) and not got_through

chosen = [a for a in ATTACKS if a.number in numbers and not a.then]
with Canaries.out() as canaries:
    through = [attack.name for attack in chosen if not holds(attack, canaries)]
    answered = asyncio.run(answer(tool, "print(6 * 7)", canaries))
tool.close()
print("RAN", json.dumps([answered, through, len(chosen)]))
"""

# ENOSYS, as a kernel without it answers.
LANDLOCK = {"landlock_create_ruleset": 38}
# EPERM, as Docker's default profile answers.
NAMESPACES = {"unshare": 1, "mount": 1}


def machine_without(
    denied: dict[str, int],
    options: dict[str, object],
    attacks: Sequence[int] = (),
    python: Sequence[str] = (),
) -> str:
    """Return what the tool says if the kernel denies system calls.

    It is opened in a process of its own under a seccomp filter.

    Args:
        denied: name of the system call -> errno.
        options: of the tool.
        attacks: numbers of the attacks to run.
        python: the command of the interpreter; empty: this one.
    """
    arguments = [
        *(python or [sys.executable]),
        "-c",
        DENIED + REPORT,
        json.dumps(denied),
        json.dumps(options),
        json.dumps(attacks),
    ]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ATTACKS = [7, 8, 12, 17, 18, 19, 21, 22, *range(24, 29), 38, 42, 43, *range(47, 55), *range(57, 63)]
"""The attacks that the layers answer, and those on neighbours; the others run into limits."""

SOME = [17, 18, 20, 22, 49, 53]
"""One of each layer."""


def test_this_machine_has_every_layer():
    rows = check(PythonOptions())
    assert [row.layer for row in rows] == [
        "toolbox",
        "bubblewrap",
        "user",
        "namespaces",
        "landlock",
        "seccomp",
        "cgroup",
    ]
    assert all(row.present for row in rows if row.needed), table(rows)
    assert [row.layer for row in rows if not row.needed] in ([], ["cgroup"])
    layers, _ = isolation(PythonOptions())
    assert layers == Isolation(namespaces=True, landlock=layers.landlock, seccomp=True, bare=False)
    assert layers.landlock >= 1


def test_a_layer_that_is_present_is_used_even_if_it_may_be_missing():
    assert (
        isolation(PythonOptions(allow_missing=frozenset(Layer)))[0] == isolation(PythonOptions())[0]
    )


def test_no_landlock_refuses_to_start_and_says_how_to_get_it():
    said = machine_without(LANDLOCK, {})
    assert said.startswith("REFUSED the sandbox is not safe here, it lacks: landlock\n")
    assert "landlock    MISSING  a kernel from 5.13 on" in said
    assert "namespaces  present" in said
    assert "allow_missing" in said


def test_no_namespaces_refuses_to_start_and_says_how_to_get_them():
    said = machine_without(NAMESPACES, {})
    assert said.startswith("REFUSED the sandbox is not safe here, it lacks: namespaces\n")
    assert "Docker: --security-opt" in said


def test_no_isolation_at_all_is_refused_whatever_the_recipe_says():
    said = machine_without(NAMESPACES | LANDLOCK, {"allow_missing": ["namespaces", "landlock"]})
    assert said.startswith("REFUSED without namespaces the sandbox needs Landlock of version 6")
    said = machine_without(NAMESPACES | LANDLOCK, {"allow_missing": ["landlock"]})
    assert said.startswith("REFUSED")


@pytest.mark.slow
def test_without_landlock_a_recipe_that_says_so_still_holds_attacks():
    """The code can then list the jail's own root. The namespaces keep everything else out."""
    holds(machine_without(LANDLOCK, {"allow_missing": ["landlock"]}, [*ATTACKS, 16]))


def holds(said: str, numbers: Sequence[int] = ()) -> None:
    answered, through, tried = json.loads(said.removeprefix("RAN "))
    assert (answered, through) == ("42", [])
    assert tried >= len(numbers or ATTACKS)


@pytest.fixture
def public_toolbox() -> Iterator[Path]:
    """Make a toolbox under the system's Python, in a folder that every user reads.

    It has the packages of the real one, as hard links.
    """
    folder = Path(tempfile.mkdtemp(prefix="axpo-toolbox-", dir="/var/tmp"))
    box = folder / "box"
    made = subprocess.run(
        ["/usr/bin/python3", "-m", "venv", "--without-pip", box], capture_output=True
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = Path("lib", version, "site-packages")
    source = Path(sys.prefix, "toolbox").resolve() / packages
    try:
        same_version = made.returncode == 0 and (box / packages).exists()
        # On another disk there are no hard links.
        if not same_version or source.stat().st_dev != folder.stat().st_dev:
            pytest.skip("the system's Python has another version than the toolbox")
        folder.chmod(0o755)
        shutil.copytree(source, box / packages, copy_function=os.link, dirs_exist_ok=True)
        yield box
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@needs_root
def test_without_namespaces_a_recipe_that_says_so_still_holds_attacks(public_toolbox):
    """Two attacks are not among these.

    The quota of the whole disk is lost (16), and the names and sizes of the host's files are seen
    with stat (20).
    """
    options = {"allow_missing": ["namespaces"], "toolbox": str(public_toolbox)}
    before = work_folders()
    holds(machine_without(NAMESPACES, options, [*ATTACKS, 37]))
    assert work_folders() <= before


def work_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


@needs_root
def test_an_ordinary_user_has_every_layer_too(public_toolbox):
    """Root becomes one here.

    It uses the system's Python, because that of the checkout may be in root's home.
    """
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    python = [
        *("setpriv", "--reuid", "61500", "--regid", "61500", "--clear-groups"),
        *("env", "-i", "PATH=/usr/bin:/bin", f"PYTHONPATH={path}"),
        "/usr/bin/python3",
    ]
    tried = subprocess.run([*python, "-c", "import tool_server.python"], capture_output=True)
    if tried.returncode:
        pytest.skip("the checkout or its packages are not readable by everybody")
    options = {"toolbox": str(public_toolbox)}
    holds(machine_without({}, options, [*ATTACKS, 16, 20, 37], python))


DOCKERS_DEFAULT = ",".join(
    ["-all"]
    + [
        f"+{name}"
        for name in (
            *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
            *("net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
        )
    ]
)
"""The capabilities of root in a container; CAP_SYS_ADMIN is not among them."""


def with_capabilities(bounding_set: str) -> list[str]:
    return ["setpriv", "--inh-caps=-all", f"--bounding-set={bounding_set}", sys.executable]


@needs_root
def test_root_in_a_container_has_every_layer_too():
    holds(machine_without({}, {}, SOME, with_capabilities(DOCKERS_DEFAULT)), SOME)


@needs_root
def test_root_without_any_capability_is_told_to_be_an_ordinary_user():
    said = machine_without({}, {}, (), with_capabilities("-all"))
    assert said.startswith("REFUSED the sandbox is not safe here, it lacks: namespaces, user\n")
    assert "docker run --user 1000" in said


def test_a_toolbox_that_is_missing_or_lacks_packages_is_named(tmp_path):
    with pytest.raises(ToolUnavailable, match=r"no toolbox at .*nowhere; `axpo setup` makes one"):
        isolation(PythonOptions(toolbox=tmp_path / "nowhere"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    with pytest.raises(ToolUnavailable, match="hidden by the jail's own /tmp"):
        isolation(PythonOptions(toolbox=tmp_path / "empty"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        (tmp_path / "empty").rename(Path(folder, "empty"))
        with pytest.raises(ToolUnavailable, match="lacks landlockpy, matplotlib, numpy"):
            isolation(PythonOptions(toolbox=Path(folder, "empty")))


def test_no_bubblewrap_is_named(monkeypatch):
    monkeypatch.setattr(layers, "bubblewrap", lambda: None)
    with pytest.raises(ToolUnavailable, match=r"bubblewrap +MISSING +apt install bubblewrap"):
        isolation(PythonOptions())


@needs_root
def test_a_user_that_exists_is_no_user_for_a_jail():
    """User 1 is `daemon` everywhere."""
    with pytest.raises(ToolUnavailable, match="1 is daemon: set jail_uid"):
        isolation(PythonOptions(jail_uid=1))
