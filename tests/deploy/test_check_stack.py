"""What set-up says of a machine, with machines and parts that are made up."""

from __future__ import annotations

import sysconfig
from dataclasses import replace

import pytest

from deploy.check_stack import PARTS, Part, check
from deploy.host import Host, driver_version, this_host

GPU = Host(driver="580.95.05", cuda="13.0", compiler=True, headers=True)
CPU = Host(driver=None, cuda=None, compiler=True, headers=True)
PYTHON = sysconfig.get_python_version()
WORKS = Part("one", ("-c", "print('a warning'); print('one 1.0')"), "never shown")
FAILS = Part("two", ("-c", "raise OSError('no room')"), "make room")


def on_gpu(part: Part) -> Part:
    return replace(part, needs_gpu=True)


def optional(part: Part) -> Part:
    return replace(part, optional=True)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        (replace(GPU, compiler=False), "no gcc: DeepSpeed and Triton need it"),
        (replace(GPU, headers=False), f"no Python.h of Python {PYTHON}: Triton and learner.off"),
        (replace(CPU, headers=False), f"no Python.h of Python {PYTHON}: Triton and learner.off"),
        (
            replace(GPU, driver="570.124.06"),
            "NVIDIA driver 570.124.06: torch is built for CUDA 13.0, which needs 580 or newer",
        ),
        (
            replace(GPU, driver="470.82.01", cuda="12.8"),
            "NVIDIA driver 470.82.01: torch is built for CUDA 12.8, which needs 525 or newer",
        ),
    ],
)
def test_what_a_machine_lacks_is_named(host: Host, line: str) -> None:
    (found,) = host.missing()
    assert found.startswith(line)


@pytest.mark.parametrize(
    "host", [GPU, CPU, replace(GPU, driver="525.60.13", cuda="12.8"), replace(GPU, cuda="14.0")]
)
def test_a_machine_that_has_all_lacks_nothing(host: Host) -> None:
    assert host.missing() == []


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (GPU, None),
        (CPU, "no NVIDIA driver, and torch is built for CPUs"),
        (replace(GPU, driver=None), "no NVIDIA driver, and torch is built for CUDA 13.0"),
        (
            replace(GPU, cuda=None),
            "torch is built for CPUs; `AXPO_EXTRA=gpu make setup` installs the CUDA stack",
        ),
    ],
)
def test_why_the_parts_of_a_gpu_are_skipped_is_said(
    host: Host, reason: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert host.no_gpu == reason
    assert check((WORKS, on_gpu(WORKS)), host) == 0
    lines = capsys.readouterr().out.splitlines()
    if reason is None:
        assert (
            lines
            == ["setup: checking one, one, one process each (a minute or two)"]
            + ["  ok    one 1.0"] * 2
        )
    else:
        assert lines[1:] == [f"  skip  one: {reason}", "  ok    one 1.0"]


def test_a_part_that_fails_shows_why_and_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert check((FAILS, WORKS), CPU) == 1
    out = capsys.readouterr().out
    assert "  FAIL  two\n" in out
    assert "        OSError: no room\n        -> make room\n  ok    one 1.0\n" in out
    assert out.endswith("run `make setup` again.\n")


def test_without_a_part_that_is_optional_the_stack_is_usable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check((optional(FAILS), WORKS), CPU) == 0
    out = capsys.readouterr().out
    assert "  lacks two\n" in out
    assert "not usable" not in out


def test_the_version_is_read_from_what_the_kernels_module_says() -> None:
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    )
    assert driver_version(text) == "580.95.05"
    assert driver_version("NVRM version: none") is None


def test_this_machine_is_told_from_its_torch() -> None:
    import torch

    assert this_host().cuda == torch.version.cuda


def test_every_part_of_the_gpu_paths_is_tried() -> None:
    assert [part.name for part in PARTS if part.needs_gpu] == ["Triton", "FlexAttention", "NCCL"]
    assert [part.name for part in PARTS if part.optional] == ["sandbox"]
