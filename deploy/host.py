"""What the machine offers, looked up without importing torch."""

import importlib.util
import runpy
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

OLDEST_DRIVER = {13: 580, 12: 525}
"""By CUDA's major version, the oldest driver that runs it (NVIDIA's table of CUDA and drivers)."""
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Host:
    """One machine, as the stack sees it."""

    driver: str | None
    """Version of the NVIDIA driver; None: there is none."""
    cuda: str | None
    """Version of CUDA that torch is built for; None: for CPUs."""
    compiler: bool
    """gcc is there."""
    headers: bool
    """Python.h is there."""

    @property
    def no_gpu(self) -> str | None:
        """Why the parts that need a GPU cannot run; None: they can."""
        if self.cuda is None and self.driver is None:
            return "no NVIDIA driver, and torch is built for CPUs"
        if self.cuda is None:
            return "torch is built for CPUs; `AXPO_EXTRA=gpu make setup` installs the CUDA stack"
        if self.driver is None:
            return f"no NVIDIA driver, and torch is built for CUDA {self.cuda}"
        return None

    def missing(self) -> list[str]:
        """Return what the stack lacks here, a line each, with what helps."""
        lines = []
        if not self.compiler:
            lines.append(
                "no gcc: DeepSpeed and Triton need it; Debian: apt install build-essential"
            )
        if not self.headers:
            version = sysconfig.get_python_version()
            lines.append(
                f"no Python.h of Python {version}: Triton and learner.offload_optimizer compile "
                f"against it; Debian: apt install python{version}-dev"
            )
        lines += self._driver_too_old()
        return lines

    def _driver_too_old(self) -> list[str]:
        if self.driver is None or self.cuda is None:
            return []
        oldest = OLDEST_DRIVER.get(int(self.cuda.split(".")[0]))
        if oldest is None or int(self.driver.split(".")[0]) >= oldest:
            return []
        return [
            f"NVIDIA driver {self.driver}: torch is built for CUDA {self.cuda}, which needs "
            f"{oldest} or newer"
        ]


def this_host() -> Host:
    """Look at this machine."""
    return Host(
        driver=driver_version(DRIVER.read_text()) if DRIVER.exists() else None,
        cuda=_cuda_of_torch(),
        compiler=shutil.which("gcc") is not None,
        headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
    )


def driver_version(text: str) -> str | None:
    """Return the version in what the kernel's module says of itself; None: there is none."""
    for word in text.split():
        parts = word.split(".")
        if len(parts) >= 2 and all(part.isdigit() for part in parts):
            return word
    return None


def _cuda_of_torch() -> str | None:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    cuda: str | None = runpy.run_path(str(Path(found.origin).with_name("version.py")))["cuda"]
    return cuda
