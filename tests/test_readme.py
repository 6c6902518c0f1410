"""README's commands, run as printed and in their order, in the home of a user who has nothing yet.

`RECIPE`, `RUN` and the like are given values here. A command that README gains, loses or changes
must be given its values, too.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.axpo.evaluation import invented

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__")

SFT = (
    "sft={output: tuned, stages: [{steps: 1, batch_size: 4, lr: 1.0e-4, mix: {demonstration: 1}}]}"
)
WORDS = (
    "sft={output: made, stages: [{steps: 2, batch_size: 8, lr: 1e-3, "
    "task: {digit: 22, border: 5}, mix: {sheet: 1}}]}"
)
BOX = '{"bbox_2d": [0, 0, 500, 500]}'

ABOUT_RECIPES: dict[str, tuple[str, ...]] = {
    "axpo check RECIPE": ("axpo check debug", "axpo check debug --full"),
    "axpo train RECIPE --set learner.lr=1e-5 --set algorithm=grpo": (
        "axpo train debug --set learner.lr=1e-5 --set algorithm=grpo --run first",
    ),
    # As if the run had been killed after its first step.
    "axpo train --resume runs/NAME": (
        "rm -r runs/first/summary.json runs/first/checkpoints/step_0002",
        "axpo train --resume runs/first",
    ),
    "axpo train RECIPE --rollouts-only": (
        "axpo train debug --rollouts-only --run recorded",
        "axpo train debug --replay runs/recorded --run replayed",
    ),
    "axpo eval RECIPE|RUN": ("axpo eval debug", "axpo eval runs/first"),
    "axpo eval RUN --suite paper --data DIR --judge exact": (
        "axpo eval runs/first --suite paper --data benchmarks --judge exact --samples 1",
    ),
    "axpo sft RECIPE": (f"axpo sft debug --set '{SFT}'",),
    "axpo view RUN...": (),  # below: it serves until it is told to end
    "axpo report RUN": (
        "axpo report runs/first",
        'axpo report runs/first --show "is:recovered tool:python"',
    ),
    "axpo --install-completion": ("axpo --install-completion",),
    "axpo list [CONCEPT]": ("axpo list", "axpo list rankings"),
    "axpo tools list|call|check": (
        "axpo tools list debug",
        f"axpo tools call image_zoom_in '{BOX}' debug --image picture.png",
        "axpo tools check",
    ),
    "axpo index build PATH": ("axpo index build facts.jsonl",),
    "axpo recipes copy NAME": ("axpo recipes copy demo",),
    # The whole takes an hour. This is what it calls, with two updates instead of thousands.
    "make model": (
        f"axpo model build --set '{WORDS}' --set task.held_out=8",
        f"make --no-print-directory -n -C {CHECKOUT} model",
    ),
}
"""Of each command of README, what is run."""


def commands(page: Path, heading: str) -> list[str]:
    """Return the lines of the first block below a heading, without their comments."""
    below = page.read_text(encoding="utf-8").split(f"\n{heading}", 1)[1]
    block = re.search(r"```(?:bash)?\n(.*?)```", below, re.DOTALL)
    assert block is not None
    return [line.split(" #")[0].split("   ")[0].strip() for line in block[1].splitlines()]


@dataclass(frozen=True)
class Home:
    """A home without any file, and an empty folder in it."""

    path: Path
    folder: Path
    ray: Path
    """For Ray's sessions; short, because they hold sockets."""

    @property
    def variables(self) -> dict[str, str]:
        """Return an environment with nothing of the developer's own."""
        binaries = Path(sys.executable).parent
        return {
            "HOME": str(self.path),
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            # Not /tmp/ray: what a killed cluster leaves there would be joined by later tests.
            "RAY_TMPDIR": str(self.ray),
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
        }

    def run(self, script: str, folder: Path | None = None, timeout: int = 900) -> str:
        """Run a script as a login would, and return what it printed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{script}\n:"],
            cwd=folder or self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-6000:]}"
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Return the processes whose home this is: what was started in it, and still runs."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.path):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    ray = Path(tempfile.mkdtemp(prefix="axpo-home-"))
    found = Home(tmp_path / "home", tmp_path / "home" / "work", ray)
    found.folder.mkdir(parents=True)
    yield found
    # A Ray cluster outlives the shell that started it.
    left = found.processes()
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=30)
    shutil.rmtree(ray, ignore_errors=True)
    # deploy/README has a folder of its own; this file in it names the cluster that is gone.
    Path(f"/tmp/axpo-{os.getuid()}/ray/ray_current_cluster").unlink(missing_ok=True)


def test_every_command_about_recipes_is_run() -> None:
    assert commands(README, "## What you see") == list(ABOUT_RECIPES)


def test_what_is_run_elsewhere_is_known() -> None:
    # `make demo` below; `make test` is what runs the tests.
    assert commands(README, "## Two commands") == ["make demo", "make test"]
    without_checkout = commands(README, "## Without the checkout")
    of_the_wheel = (CHECKOUT / "tests/test_wheel.py").read_text(encoding="utf-8")
    for line in without_checkout[1:]:
        words = [word for word in line.split() if word not in ("cd",)]
        assert all(f'"{word}"' in of_the_wheel for word in words), line


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(3000)
def test_the_commands_about_recipes_work_in_an_empty_folder(home: Home) -> None:
    from PIL import Image

    invented.write(home.folder / "benchmarks")
    Image.new("RGB", (256, 256), "white").save(home.folder / "picture.png")
    (home.folder / "facts.jsonl").write_text('{"text": "AXPO forks at tool calls."}\n')
    said = {command: home.run(command) for every in ABOUT_RECIPES.values() for command in every}
    assert (home.folder / "runs/first/summary.json").exists()
    assert (home.folder / "runs/replayed/checkpoints").exists()
    assert (home.folder / "tuned/model.safetensors").exists()
    assert (home.folder / "made/model.safetensors").exists()
    assert "axpo" in (home.path / ".bashrc").read_text()
    assert ".venv/bin/axpo model build" in next(said[one] for one in said if one.endswith(" model"))
    assert serves(home)


def serves(home: Home) -> bool:
    """Return whether `axpo view` serves a page, and ends when it is told to."""
    viewer = subprocess.Popen(
        ["axpo", "view", "runs/first"],
        executable=str(Path(sys.executable).parent / "axpo"),
        cwd=home.folder,
        env=home.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert viewer.stdout is not None
        address = viewer.stdout.readline().removeprefix("open ").strip()
        # The token in the address becomes a cookie.
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with browser.open(address, timeout=60) as page:
            found = "first" in page.read().decode("utf-8")
        viewer.send_signal(signal.SIGINT)
        viewer.wait(timeout=60)
    finally:
        viewer.kill()
    return found


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("page", "heading"),
    [("README.md", "## On a cluster"), ("deploy/README.md", "## A Ray cluster by hand")],
)
def test_the_commands_about_a_cluster_work_and_the_run_stays(
    page: str, heading: str, home: Home
) -> None:
    checkout = home.folder / "axpo"
    shutil.copytree(CHECKOUT, checkout, symlinks=True, ignore=NOT_SOURCE)
    (checkout / ".venv").symlink_to(sys.prefix)
    script = "\n".join(commands(CHECKOUT / page, heading))
    assert "ray get-auth-token --generate" in script
    said = home.run(script, folder=checkout)
    assert (home.path / ".ray" / "auth_token").exists()
    (run,) = (checkout / "runs").iterdir()
    assert (run / "report.html").exists(), said[-4000:]


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(2400)
def test_the_main_run_is_one_command(home: Home) -> None:
    if not (CHECKOUT / ".venv" / "axpo-setup").exists():
        pytest.skip("the environment is not that of `make setup`")
    runs = CHECKOUT / "runs"
    before = set(runs.glob("demo-axpo-*"))
    said = home.run("make demo", folder=CHECKOUT, timeout=2300)
    (run,) = set(runs.glob("demo-axpo-*")) - before
    try:
        assert (run / "summary.json").exists(), said[-4000:]
        assert (run / "report.html").exists()
    finally:
        shutil.rmtree(run)
