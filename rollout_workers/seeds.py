"""Sampling seeds: every request's seed is a function of what it samples, so a run replays and a resume continues exactly."""

from __future__ import annotations

import hashlib

_BITS = 62
"""Below the signed 64-bit limit even after vLLM adds the index of an n=K request's child to its seed."""


def derive_seed(
    run_seed: int,
    step: int,
    question_id: str,
    rollout: int,
    fork: tuple[int, int] | None,
    turn: int,
    part: int = 0,
) -> int:
    """Seed of one turn's request, in [0, 2**62).

    `fork` is None for a rollout and (length, k) for the k-th continuation of its first `length` tokens. The first turn of a fork is one
    n=K request, seeded with k = 0: vLLM gives its k-th child seed + k. `part` counts the weight updates that cut the turn.
    """
    parts = [
        str(run_seed),
        str(step),
        question_id,
        str(rollout),
        "" if fork is None else "{} {}".format(*fork),
        str(turn),
    ]
    key = "\0".join(parts + ([str(part)] if part else []))
    return int.from_bytes(
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    ) >> (64 - _BITS)
