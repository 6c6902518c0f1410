"""The numbers of a run on a GPU: benchmarks/results/gpu.json."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

FILE = Path("benchmarks/results/gpu.json")
PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "ray", "triton")


class Figures:
    """Print numbers, and write them into a file if they were measured on a GPU."""

    def __init__(self, *, recording: bool, file: Path = FILE) -> None:
        self._recording = recording
        self._file = file

    def add(self, name: str, **numbers: float) -> None:
        """Take the numbers of one measurement; those of the same name before are replaced."""
        rounded = {key: float(f"{number:.4g}") for key, number in numbers.items()}
        print(f"\n{name}: " + ", ".join(f"{key} {number:g}" for key, number in rounded.items()))
        if not self._recording:
            return
        found: dict[str, Any] = {"figures": {}}
        if self._file.exists():
            found = json.loads(self._file.read_text())
        figures = found["figures"] | {name: rounded}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(_about() | {"figures": figures}, indent=2) + "\n")


def _about() -> dict[str, Any]:
    """Return the machine and the versions that numbers depend on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": commit.stdout.strip() or None,
    }
