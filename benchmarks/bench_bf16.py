"""How far the learner in bfloat16 is from the learner in float32, on texts of several lengths.

The measure is KL(float32 || bfloat16) over the whole vocabulary, as a mean over the positions of a
text. It should not grow with the length: what grows is an error of positions, not of rounding.
Both learners are ranks as a run starts them, in a process of their own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recorded import MODEL
from benchmarks.result import Entry, at_most
from learner.config import LearnerConfig, RankSettings, Serving
from learner.credit import TrainItem
from rollout_workers.trajectory import EndReason, PolicySegment, Question, Trajectory

LENGTHS = (128, 512, 1024, 3000)
TARGET = 3e-4
"""What rounding alone costs, twice over."""
POSITIONS = 512
"""Distributions compared in one text, evenly spread; all of them if it is shorter."""
TEXTS = ("docs/method.md", "README.md")


def measure() -> list[Entry]:
    """Return the entry `bf16_kl_at_3000`."""
    by_length = kl_by_length(MODEL)
    shorter = ", ".join(f"{by_length[n]:.2g} at {n}" for n in LENGTHS[:-1])
    detail = (
        "KL(float32 || bfloat16) of the learner over the whole vocabulary, mean over the positions "
        f"of a text of {LENGTHS[-1]} tokens, the embedded model; {shorter}"
    )
    return [at_most("bf16_kl_at_3000", by_length[LENGTHS[-1]], TARGET, "nats", detail)]


def kl_by_length(model: str, positions: int = POSITIONS) -> dict[int, float]:
    """Return the mean KL in nats, for each of LENGTHS tokens of text.

    Args:
        model: a model folder whose weights are bfloat16, so that both learners have the same.
        positions: distributions compared in one text.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_bf16", model, str(positions)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"bench_bf16 of {model} failed: {done.stderr[-2000:]}")
    values: list[float] = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(LENGTHS, values, strict=True))


def _run(model: str, positions: int) -> None:
    """Print the KL of each length; runs in a process of its own."""
    # Both are read when torch and DeepSpeed are imported, which is below.
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    exact, rounded = [_rank(model, dtype, port) for dtype in ("float32", "bfloat16")]
    ids = _text_ids(model, max(LENGTHS))
    kls = [_mean_kl(exact, rounded, ids[:length], positions) for length in LENGTHS]
    print(json.dumps(kls))


def _rank(model: str, dtype: str, port: int) -> Any:
    """Return a rank of a learner that has no other rank and no reference."""
    from learner.rank import LearnerRank

    config = LearnerConfig.model_validate({"ranks": 1, "kl_beta": 0.0, "dtype": dtype})
    settings = RankSettings(
        model=model,
        reference=model,
        config=config,
        serving=Serving(),
        seed=0,
        rank=0,
        address="127.0.0.1",
        port=port,
    )
    return LearnerRank(settings)


def _text_ids(model: str, count: int) -> list[int]:
    from transformers import AutoTokenizer

    text = "\n".join(Path(name).read_text(encoding="utf-8") for name in TEXTS)
    ids: list[int] = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    if len(ids) < count:
        raise ValueError(f"{', '.join(TEXTS)} have {len(ids)} tokens; expected {count} or more")
    return ids[:count]


def _mean_kl(exact: Any, rounded: Any, ids: Sequence[int], positions: int) -> float:
    import torch

    item = _item(ids, positions)
    hidden = [_hidden(rank, item) for rank in (exact, rounded)]
    kls = []
    # A few distributions at a time: with a real vocabulary 16 take 20 MB in float64.
    for one, other in zip(hidden[0].split(16), hidden[1].split(16), strict=True):
        p, q = _distribution(exact, one), _distribution(rounded, other)
        kls.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(kls).mean())


def _item(ids: Sequence[int], positions: int) -> TrainItem:
    """Return a text as if it had been sampled, with so many trained tokens, evenly spread."""
    sampled = np.array(ids[1:], np.int32)
    segment = PolicySegment(sampled, np.zeros(len(sampled), np.float32), 0)
    prompt = np.array(ids[:1], np.int32)
    trajectory = Trajectory("text", 0, prompt, (segment,), EndReason.ANSWERED)
    places = np.linspace(0, len(sampled) - 1, min(positions, len(sampled))).astype(int)
    mask = np.zeros(len(sampled), np.bool_)
    mask[places] = True
    question = Question("text", "", (), "")
    return TrainItem(question, trajectory, mask.astype(np.float32), mask, weight=1.0)


def _hidden(rank: Any, item: TrainItem) -> Any:
    """Return the hidden states that the head gets for the trained tokens, shape [M, H].

    They come from the rank's own forward pass over a micro-batch.
    """
    seen: list[Any] = []
    head = rank.engine.module.head
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        rank.logprobs([item])
    finally:
        hook.remove()
    return seen[0]


def _distribution(rank: Any, hidden: Any) -> Any:
    """Return log-probabilities over the vocabulary, shape [M, V], as the head makes them."""
    import deepspeed
    import torch

    from learner.head import logits

    head = rank.engine.module.head
    with torch.no_grad(), deepspeed.zero.GatheredParameters([head.weight]):
        return logits(hidden, head.weight, head.sampling).double().log_softmax(-1)


if __name__ == "__main__":
    _run(sys.argv[1], int(sys.argv[2]))
