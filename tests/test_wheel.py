"""A wheel, installed into an empty environment and used in an empty folder.

Only the heavy packages are not installed again: a `.pth` file leads to where they are. Of the
checkout nothing is on the path.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from axpo import __version__

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1500)]

CHECKOUT = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__")
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({folder!r}))"
SMALL = (
    *("--set", "steps=1", "--set", "questions_per_step=4", "--set", "rollout.n=4"),
    *("--set", "task.held_out=8"),
)
"""Settings that make a run of the demo short."""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    environment: Path
    folder: Path

    def run(self, *command: str, folder: Path | None = None, timeout: int = 600) -> str:
        """Run a command of the environment as a user would, and return what it printed."""
        done = self.ended(*command, folder=folder, timeout=timeout)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def ended(
        self, *command: str, folder: Path | None = None, timeout: int = 600
    ) -> subprocess.CompletedProcess[str]:
        binaries = self.environment / "bin"
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(self.folder.parent)}
        variables |= {"VIRTUAL_ENV": str(self.environment), "COLUMNS": "200"}
        return subprocess.run(
            [str(binaries / command[0]), *command[1:]],
            cwd=folder or self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    root = tmp_path_factory.mktemp("wheel")
    wheel = built(root)
    environment = root / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    found = Installed(environment, root / "empty")
    found.folder.mkdir()
    found.run("python", "-m", "pip", "install", "-qq", "--no-deps", "--no-index", str(wheel))
    site = found.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # `.pth` files in the folder that this one names are not read: the checkout stays away.
    heavy = Path(site.strip()) / "heavy.pth"
    heavy.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    yield found
    toolbox = environment / "toolbox"
    if toolbox.is_symlink():
        shutil.rmtree(toolbox.resolve())


def built(root: Path) -> Path:
    """Build a wheel by way of a source distribution, as an index would get them."""
    source = root / "source"
    shutil.copytree(CHECKOUT, source, symlinks=True, ignore=NOT_SOURCE)
    dist = root / "dist"
    archive = build("sdist", source, dist)
    shutil.unpack_archive(archive, root / "unpacked", filter="data")
    return build("wheel", root / "unpacked" / f"axpo-{__version__}", dist)


def build(kind: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-c", BUILD.format(kind=kind, folder=str(folder))]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / done.stdout.splitlines()[-1]


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]


def test_nothing_of_the_checkout_is_used(installed: Installed) -> None:
    script = (
        "import json, sys, axpo, learner, resampler, rollout_workers, tool_server\n"
        "packages = [axpo, learner, resampler, rollout_workers, tool_server]\n"
        "print(json.dumps([[package.__file__ for package in packages], sys.path]))"
    )
    files, path = json.loads(installed.run("python", "-c", script))
    assert all(Path(file).is_relative_to(installed.environment) for file in files)
    assert str(CHECKOUT) not in path
    assert "axpo" in installed.run("axpo", "--help")


def test_every_file_of_the_packages_is_in_it(installed: Installed) -> None:
    source = installed.folder.parent / "source"
    packages = ("axpo", "learner", "resampler", "rollout_workers", "tool_server")
    expected = set()
    for package in packages:
        for folder, _, names in os.walk(source / package, followlinks=True):
            expected |= {str(Path(folder, name).relative_to(source)) for name in names}
    (wheel,) = (installed.folder.parent / "dist").glob("*.whl")
    assert expected - set(ZipFile(wheel).namelist()) == set()


def test_the_wheel_says_what_it_is(installed: Installed) -> None:
    script = "import importlib.metadata as m, json; print(json.dumps(m.metadata('axpo').json))"
    about = json.loads(installed.run("python", "-c", script))
    assert about["version"] == __version__
    assert about["author"] == "AXPO authors"
    assert about["description"].startswith("# AXPO")
    assert "Paper, https://arxiv.org/abs/2605.28774" in about["project_url"]
    assert "Programming Language :: Python :: 3.11" in about["classifier"]
    assert {"cpu", "gpu"} <= set(about["provides_extra"])


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA torch fits its torchvision")
def test_set_up_makes_the_environment_whole(installed: Installed) -> None:
    refused = installed.ended("axpo", "check", "demo")
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("`axpo setup` finishes this environment, once")
    said = installed.run("axpo", "setup")
    for part in ("vllm", "ray", "deepspeed", "Qwen3-VL processor"):
        assert f"  ok    {part}" in said, said
    # What the checkout's set-up makes in the checkout, this one makes in its own environment.
    assert (installed.environment / "toolbox" / "bin" / "python").exists()


def test_recipes_models_and_data_are_there_by_name(installed: Installed) -> None:
    assert "demo" in installed.run("axpo", "recipes")
    checked = installed.run(
        "axpo",
        "check",
        "mixed",
        "--set",
        "tools={tools: {image_zoom_in: {}}}",
        "--set",
        "evaluation.tools={}",
    )
    assert "model: 2.4 million parameters" in checked
    wines = ("axpo/tasks/embedded/wines.jsonl", "--out", "wines.index")
    assert "178 documents" in installed.run("axpo", "index", "build", *wines)


def test_the_demo_trains(installed: Installed) -> None:
    installed.run("axpo", "demo", "--run", "short", *SMALL)
    run = installed.folder / "runs" / "short"
    trained = [row for row in metrics_of(run) if row.get("trained_tokens")]
    assert len(trained) == 1
    assert (run / "report.html").exists()


def test_a_starter_project_trains_at_once(installed: Installed) -> None:
    installed.run("axpo", "init", "my-project")
    project = installed.folder / "my-project"
    installed.run("axpo", "train", "recipe.yaml", "--run", "first", folder=project)
    run = project / "runs" / "first"
    trained = [row for row in metrics_of(run) if row.get("trained_tokens")]
    assert len(trained) == 3
    recorded = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert "function: my_tool:keep_color" in recorded
    assert "my_verifier:right_count" in recorded
