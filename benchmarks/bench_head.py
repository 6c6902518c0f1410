"""Peak memory of log-probabilities and their gradient: the chunked head against full logits, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.result import Entry

VOCABULARY, TOKENS, HIDDEN = 151_936, 4_096, 256


def peak(kind: str) -> float:
    """Bytes that forward and backward hold at most beyond what was there before."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_head", kind],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout)


def measure() -> list[Entry]:
    full, chunked = peak("full"), peak("chunked")
    detail = (
        f"{TOKENS} tokens, vocabulary {VOCABULARY}, hidden size {HIDDEN}, float32, gradients of hidden states and weight included: "
        f"{chunked / 1e6:.0f} MB against {full / 1e6:.0f} MB"
    )
    return [
        {
            "name": "logprob_head_memory_vs_full",
            "value": chunked / full,
            "target": 0.125,
            "better": "lower",
            "unit": "x",
            "detail": detail,
        }
    ]


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _run(kind: str) -> None:
    import torch

    from learner.head import Head

    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(VOCABULARY, HIDDEN))
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again
    if kind == "full":
        logits = (hidden @ weight.T).float()
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            (logprobs.exp() * logprobs).sum(-1)
        logprobs = logprobs.gather(-1, targets[:, None])[:, 0]
    else:
        logprobs, _ = Head(weight, [], 1.0)(hidden, targets)
    logprobs.sum().backward()
    print(_resident("VmHWM") - before)


if __name__ == "__main__":
    _run(sys.argv[1])
