"""Peak memory of log-probabilities and their gradient: the chunked head against full logits.

Each is measured in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.result import Entry, at_most

# The vocabulary of Qwen3-VL; a small hidden size, so that the logits are what takes memory.
VOCABULARY, TOKENS, HIDDEN = 151_936, 4_096, 256


def measure() -> list[Entry]:
    """Return the entry `logprob_head_memory_vs_full`."""
    full, chunked = peak("full"), peak("chunked")
    detail = (
        f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden size {HIDDEN}, float32, gradients of "
        f"hidden states and weight included: {chunked / 1e6:.0f} MB against {full / 1e6:.0f} MB"
    )
    return [at_most("logprob_head_memory_vs_full", chunked / full, 0.125, "x", detail)]


def peak(kind: str) -> float:
    """Return the bytes that forward and backward hold at most beyond what was there before."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_head", kind],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout)


def _resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def _run(kind: str) -> None:
    """Print the peak of one kind; runs in a process of its own."""
    import torch

    from learner.head import Head

    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(VOCABULARY, HIDDEN))
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    before = _resident("VmRSS")
    # The kernel's high-water mark starts again.
    Path("/proc/self/clear_refs").write_text("5")
    if kind == "full":
        logits = (hidden @ weight.T).float()
        logprobs = logits.log_softmax(-1)
        # The entropies that the chunked head computes too.
        with torch.no_grad():
            (logprobs.exp() * logprobs).sum(-1)
        logprobs = logprobs.gather(-1, targets[:, None])[:, 0]
    else:
        logprobs, _ = Head(weight, [], 1.0)(hidden, targets)
    logprobs.sum().backward()
    print(_resident("VmHWM") - before)


if __name__ == "__main__":
    _run(sys.argv[1])
