"""Finish an environment after pip: what no package can do by itself (`axpo setup`).

On a CPU build of torch, two packages that vLLM asks for are taken out again, and an import hook
lets torchvision load (`deploy/torchvision_cpu.py` says why). Then the toolbox of the `python` tool
is made. This module must run while the stack does not import yet.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from axpo.errors import AxpoError
from axpo.shipped import CONSTRAINTS, DEPLOY

HOOK = "axpo_torchvision_cpu"
"""Module of the import hook, as it is called in site-packages."""

LINKED_AGAINST_CUDA = ("torchaudio", "torchcodec")
"""vLLM asks for them. transformers imports torchaudio if it finds it, and dies beside a CPU torch.
Nothing here uses sound or video."""

TOOLBOX = ("landlockpy", "matplotlib", "numpy", "pandas", "pillow", "scipy", "sympy")
"""Packages that code of a policy may import."""


def fit_to_cpu() -> None:
    """Let the stack import beside a CPU build of torch; beside a CUDA build, do nothing."""
    if not _torch_is_for_cpus():
        return
    surplus = [name for name in LINKED_AGAINST_CUDA if importlib.util.find_spec(name)]
    if surplus:
        _pip("uninstall", "-qq", "--yes", *surplus)
    site = Path(sysconfig.get_path("purelib"))
    shutil.copyfile(DEPLOY / "torchvision_cpu.py", site / f"{HOOK}.py")
    (site / f"{HOOK}.pth").write_text(f"import {HOOK}\n", encoding="utf-8")


def make_toolbox() -> None:
    """Make the interpreter of the policy's code beside this one.

    Its versions are those of the constraints. Nothing of AXPO is in it.
    """
    # The jail reads it as another user.
    before = os.umask(0o022)
    try:
        folder = _toolbox_folder(Path(sys.prefix) / "toolbox")
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        python = str(folder / "bin" / "python")
        _pip("--python", python, "install", "-qq", "--constraint", str(CONSTRAINTS), *TOOLBOX)
    finally:
        os.umask(before)


def why_unfinished(error: BaseException | None) -> str | None:
    """Return what an environment lacks if that is why it failed; None: it failed otherwise."""
    while error is not None:
        for package in ("torchvision", *LINKED_AGAINST_CUDA):
            # Their operators are not there, or their libraries do not load.
            if re.search(rf"\b(lib)?{package}\b|_{package}\b", str(error)):
                return f"{package} does not fit torch"
        error = error.__cause__ or error.__context__
    return None


def check_stack() -> int:
    """Try every part of the stack, print what came of it, and return the exit code."""
    return subprocess.run([sys.executable, str(DEPLOY / "check_stack.py")], check=False).returncode


def _toolbox_folder(usual: Path) -> Path:
    """Return where the toolbox can be: the jail has a /tmp of its own, which would hide it there.

    An environment below /tmp gets a link to a toolbox elsewhere.
    """
    if not Path(sys.prefix).resolve().is_relative_to("/tmp"):
        return usual
    led_to = usual.resolve()
    if usual.is_symlink() and led_to.is_dir() and led_to.stat().st_uid == os.getuid():
        return led_to
    folder = Path(tempfile.mkdtemp(prefix="axpo-toolbox-", dir="/var/tmp"))
    folder.chmod(0o755)
    if usual.is_symlink():
        usual.unlink()
    elif usual.exists():
        shutil.rmtree(usual)
    usual.symlink_to(folder)
    return folder


def _torch_is_for_cpus() -> bool:
    """Return whether torch is built for CPUs, without importing it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise AxpoError(
            "torch is not installed here; install the engine with AXPO: axpo[cpu] or axpo[gpu]"
        )
    version = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return version["cuda"] is None


def _pip(*arguments: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise AxpoError(f"no pip in {sys.prefix}: `{sys.executable} -m ensurepip` brings it")
    _run(sys.executable, "-m", "pip", *arguments)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise AxpoError(f"`{' '.join(command)}` failed with exit code {error.returncode}") from None
