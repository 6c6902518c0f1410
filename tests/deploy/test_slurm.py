"""The Slurm script: where the head listens, and how a job ends, is requeued and goes on.

Slurm and Ray are small scripts here; bash, the address and the signals are real.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path("deploy/slurm/axpo.sbatch").absolute()
ADDRESS = Path("deploy/slurm/address.py").absolute()

# Each notes how it was called. `axpo` makes a run that lasts until SIGTERM, unless FINISHES is set.
FAKES = {
    "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo head; fi',
    "ray": "exit 0",
    "python": f'if [ "$1" = - ]; then cat >/dev/null; else exec {sys.executable} "$@"; fi',
    "axpo": """
if [[ "$*" != *--resume* ]]; then mkdir -p "$RUN"; fi
touch "$RUN/recipe.yaml"
trap 'echo checkpoint >>"$RUN/checkpoints"; exit ${CODE:-0}' TERM
if [ -n "${FINISHES:-}" ]; then touch "$RUN/summary.json"; exit "${CODE:-0}"; fi
touch "$NOTES/training"
for _ in $(seq 300); do sleep 0.1; done
""",
}


class Job:
    """One job in a folder that looks like a checkout with its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"
        self.run = folder / "runs" / "slurm-77"
        self.starts = 0
        self.folders: list[Path] = []
        binaries = folder / ".venv" / "bin"
        for place in (binaries, self.notes, folder / "deploy" / "slurm"):
            place.mkdir(parents=True)
        for name, body in FAKES.items():
            script = f'#!/bin/bash\necho "{name} $*" >>"$NOTES/calls"\n{body}\n'
            (binaries / name).write_text(script)
            (binaries / name).chmod(0o755)
        (binaries / "activate").write_text(f"export PATH={binaries}:$PATH")
        (folder / "deploy" / "slurm" / "address.py").write_text(ADDRESS.read_text())

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        self.starts += 1
        restarts = f"test-{os.getpid()}-{self.starts}"
        self.folders.append(Path(f"/tmp/axpo-77-{restarts}"))  # of Ray's session
        environment = os.environ | variables
        environment |= {
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_GPUS_PER_NODE": "0",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "head",
            "SLURM_JOB_ID": "77",
            "SLURM_RESTART_COUNT": restarts,
            "NOTES": str(self.notes),
            "RUN": str(self.run),
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ends(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(*arguments, **variables)
        said, _ = process.communicate(timeout=30)
        return process.returncode, said

    def signalled(self, number: int, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run the job, and send it a signal once it trains."""
        (self.notes / "training").unlink(missing_ok=True)
        process = self.start(*arguments, **variables)
        deadline = time.monotonic() + 30
        while not (self.notes / "training").exists():
            assert time.monotonic() < deadline, process.communicate(timeout=5)
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        return process.returncode, said

    def calls(self, name: str) -> list[str]:
        lines = (self.notes / "calls").read_text().splitlines()
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    for folder in job.folders:
        if folder.exists():
            folder.rmdir()


def test_a_job_trains_in_a_folder_of_its_own(job: Job) -> None:
    code, said = job.ends("recipe.yaml", "--set", "seed=2", FINISHES="1")
    assert code == 0, said
    root = job.folder / "runs"
    expected = f"train recipe.yaml --set seed=2 --run slurm-77 --set logging.root={root}"
    assert job.calls("axpo") == [expected]
    assert [call for call in job.calls("scontrol") if "requeue" in call] == []


def test_before_the_time_limit_a_job_writes_a_checkpoint_and_goes_on_when_it_starts_again(
    job: Job,
) -> None:
    code, said = job.signalled(signal.SIGUSR1, "recipe.yaml")
    assert code == 0, said
    assert (job.run / "checkpoints").read_text() == "checkpoint\n"
    assert job.calls("scontrol")[-1] == "requeue 77"
    # The second time it is stopped by hand, and stays out of the queue.
    code, said = job.signalled(signal.SIGTERM, "recipe.yaml")
    assert code == 0, said
    assert job.calls("axpo")[-1] == f"train recipe.yaml --resume {job.run}"
    assert (job.run / "checkpoints").read_text() == "checkpoint\n" * 2
    assert sum("requeue" in call for call in job.calls("scontrol")) == 1
    # A run that has ended is left alone.
    code, said = job.ends("recipe.yaml", FINISHES="1")
    assert (code, len(job.calls("axpo"))) == (0, 3)
    code, said = job.ends("recipe.yaml")
    assert (code, said) == (0, f"{job.run} has ended\n")
    assert len(job.calls("axpo")) == 3


def test_a_run_that_fails_is_not_tried_again(job: Job) -> None:
    assert job.signalled(signal.SIGUSR1, "recipe.yaml", CODE="3")[0] == 3
    assert job.ends("recipe.yaml", FINISHES="1", CODE="2")[0] == 2
    assert [call for call in job.calls("scontrol") if "requeue" in call] == []


def test_runs_go_where_the_user_says(job: Job) -> None:
    root = job.folder / "shared"
    assert job.ends("recipe.yaml", FINISHES="1", AXPO_RUNS=str(root))[0] == 0
    assert f"--run slurm-77 --set logging.root={root}" in job.calls("axpo")[0]
    assert job.ends("r.yaml", "--resume", "runs/other", FINISHES="1", AXPO_RUNS="/x")[0] == 0
    assert job.calls("axpo")[1] == "train r.yaml --resume runs/other"


def test_the_head_listens_where_other_nodes_reach_it(job: Job) -> None:
    assert job.ends("recipe.yaml", FINISHES="1")[0] == 0
    head, *_ = (call for call in job.calls("ray") if call.startswith("start --head"))
    own = head.split("--node-ip-address=")[1].split()[0]
    assert not own.startswith("127.")
    code, said = job.ends("recipe.yaml", FINISHES="1", AXPO_INTERFACE="none0", AXPO_RUNS="/x")
    assert code == 1
    assert "none0 [Errno 19] No such device" in said


@pytest.mark.parametrize("own_name", [["127.0.1.1"], ["127.0.0.1", "169.254.1.1"], []])
def test_a_name_that_leads_to_the_loopback_interface_is_passed_over(own_name, monkeypatch) -> None:
    def resolve(*_: object) -> list[tuple[object, ...]]:
        if not own_name:
            raise OSError("unknown name")
        return [(socket.AF_INET, 1, 6, "", (address, 0)) for address in own_name]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    script = runpy.run_path(str(ADDRESS))
    found = script["address"]()
    assert script["reachable"](found)
    assert found in {*script["of_route"](), *script["of_interfaces"]()}


def test_a_name_that_leads_elsewhere_is_taken(monkeypatch) -> None:
    given = [(socket.AF_INET, 1, 6, "", ("10.1.2.3", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: given)
    script = runpy.run_path(str(ADDRESS))
    assert script["address"]() == "10.1.2.3"
    assert script["address"]("lo") == "127.0.0.1"  # whoever names an interface means it
