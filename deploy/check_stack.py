"""Prove that the parts of the stack import and run in this environment.

Each part runs in a process of its own, side by side. The exit code is 1 if one of them fails. On a
machine without a GPU the parts that need one are skipped, and the reason is said. The sandbox may
fail: without it only the `python` tool does not work.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Started as a script, Python looks beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploy.host import Host, this_host

TIMEOUT_S = 600
"""The imports take half a minute on two idle cores.

A cold disk or a busy machine makes minutes of it.
"""

SHOWN_LINES = 12
"""Of the output of a part that failed."""

# Each script prints one line with the version of its part, or fails with a traceback.
VLLM = """
import torch, vllm
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
device = current_platform.device_type
x, out = torch.ones(2, 64, device=device), torch.empty(2, 64, device=device)
ops.rms_norm(out, x, torch.ones(64, device=device), 1e-6)  # a compiled kernel
assert torch.allclose(out, x, atol=1e-4), out
print(f"vllm {vllm.__version__} on {device}")
"""

RAY = """
import ray
quiet = dict(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.init(address="local", num_cpus=1, **quiet)
assert ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=120) == 42
print(f"ray {ray.__version__}")
"""

DEEPSPEED = """
import os, socket, torch
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
cuda = torch.cuda.is_available()
if not cuda:
    os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from learner import extensions
extensions.prepare()  # as the learner does: nothing is compiled
deepspeed.init_distributed("nccl" if cuda else "gloo")
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3},
          "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "torch_adam": True}}}
model = torch.nn.Linear(4, 1)
engine, *_ = deepspeed.initialize(
    model=model, model_parameters=model.parameters(), config=config)
loss = engine(torch.ones(1, 4, device=engine.device)).sum()
engine.backward(loss)
engine.step()
print(f"deepspeed {deepspeed.__version__}, ZeRO-3 on {engine.device.type}")
torch.distributed.destroy_process_group()
"""

PROCESSOR = """
import numpy, transformers
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
image = numpy.zeros((64, 96, 3), numpy.uint8)
features = Qwen2VLImageProcessor(patch_size=16)(images=[image], return_tensors="pt")
assert features["image_grid_thw"].shape == (1, 3), features
print(f"Qwen3-VL processor of transformers {transformers.__version__}")
"""


@dataclass(frozen=True)
class Part:
    """One part of the stack, and how it is tried."""

    name: str
    command: tuple[str, ...]
    """Arguments of the interpreter."""
    advice: str
    """What helps if it fails."""
    needs_gpu: bool = False
    optional: bool = False
    """Everything else works without it."""


_HERE = Path(__file__).resolve().parent
PARTS = (
    Part(
        "vLLM",
        ("-c", VLLM),
        "the build must fit the machine: `make setup` installs the CPU one, "
        "`AXPO_EXTRA=gpu make setup` the CUDA one",
    ),
    Part(
        "Ray",
        ("-c", RAY),
        "Ray needs free ports, a writable temporary directory and some /dev/shm; "
        "`ray stop` ends an old cluster",
    ),
    Part(
        "DeepSpeed",
        ("-c", DEEPSPEED),
        "DeepSpeed needs gcc and, on a GPU machine, a torch build that matches the driver",
    ),
    Part(
        "Qwen3-VL processor",
        ("-c", PROCESSOR),
        "torchvision must fit torch: on CPU `axpo setup` installs a small import hook, "
        "deploy/torchvision_cpu.py",
    ),
    Part(
        "Triton",
        (str(_HERE / "check_triton.py"),),
        "Triton needs gcc, Python.h and a driver that fits torch's CUDA",
        needs_gpu=True,
    ),
    Part(
        "FlexAttention",
        (str(_HERE / "check_gpu.py"), "flex"),
        "the learner's attention: it needs Triton. Until it works, learner.layout=padded does "
        "without it",
        needs_gpu=True,
    ),
    Part(
        "NCCL",
        (str(_HERE / "check_gpu.py"), "nccl"),
        "NCCL needs a network interface (NCCL_SOCKET_IFNAME names one) and, in a container, "
        "shared memory",
        needs_gpu=True,
    ),
    Part(
        "sandbox",
        (str(_HERE / "check_sandbox.py"),),
        "only the python tool needs it; SECURITY.md says what each layer is for",
        optional=True,
    ),
)


def main() -> int:
    """Check every part and return the exit code."""
    return check(PARTS, this_host())


def check(parts: tuple[Part, ...], host: Host) -> int:
    """Try the parts on a machine, print what came of it, and return the exit code."""
    tried = [part for part in parts if not (part.needs_gpu and host.no_gpu)]
    names = ", ".join(part.name for part in tried)
    print(f"setup: checking {names}, one process each (a minute or two)", flush=True)
    for line in host.missing():
        print(f"  lacks {line}")
    skipped = ", ".join(part.name for part in parts if part not in tried)
    if skipped:
        print(f"  skip  {skipped}: {host.no_gpu}")
    started = [(part, _start(part.command)) for part in tried]
    deadline = time.monotonic() + TIMEOUT_S
    failed = False
    for part, process in started:
        output = _output(process, deadline)
        _tell(part, process.returncode, output)
        failed |= process.returncode != 0 and not part.optional
    if failed:
        print("setup: the stack is not usable. If its packages were changed by hand, remove .venv")
        print("       and run `make setup` again.")
    return int(failed)


def _tell(part: Part, code: int, output: str) -> None:
    """Print what came of a part."""
    lines = output.strip().splitlines() or ["nothing was printed"]
    if code == 0:
        # The last line names the version; libraries may warn before it.
        print(f"  ok    {lines[-1].removeprefix('  ok    ')}")
        return
    print(f"  {'lacks' if part.optional else 'FAIL '} {part.name}")
    for line in lines[-SHOWN_LINES:]:
        print(f"        {line}")
    print(f"        -> {part.advice}")


def _start(command: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _output(process: subprocess.Popen[str], deadline: float) -> str:
    """Return all that a process writes; kill it at the deadline."""
    # A process that is looked at after the deadline still gets a moment: it may have ended by now.
    remaining = max(1.0, deadline - time.monotonic())
    try:
        return process.communicate(timeout=remaining)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0] + f"\nno answer within {TIMEOUT_S} s"


if __name__ == "__main__":
    sys.exit(main())
