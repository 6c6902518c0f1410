"""The import hook that set-up installs beside a CPU torch."""

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA torch needs no hook")


def test_torchvision_imports_in_any_process():
    inner = "from torchvision.transforms.v2 import functional"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    assert subprocess.run([sys.executable, "-c", outer], timeout=120, check=False).returncode == 0


def test_interpreter_start_imports_nothing():
    script = "import sys; print([m for m in ('torch', 'torchvision', 'numpy') if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True
    ).stdout
    assert out.strip() == "[]"
