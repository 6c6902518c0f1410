"""Sampling seeds.

The seed of a request is a function of what it samples. So a run replays exactly, and a resume
continues exactly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

_BITS = 62
"""Below the signed 64-bit limit, also after vLLM adds the index of an n=K request's child."""


@dataclass(frozen=True)
class Seeds:
    """The seeds of the requests of one rollout or of one continuation.

    `fork` is None for a rollout, and (length, k) for the k-th continuation of the rollout's first
    `length` response tokens. The first turn of a fork is one n=K request, seeded with k = 0: vLLM
    gives its k-th child seed + k.
    """

    run_seed: int
    step: int
    question_id: str
    rollout: int
    fork: tuple[int, int] | None = None

    def of_fork(self, prefix_tokens: int, k: int) -> Seeds:
        """Return the seeds of the k-th continuation of this rollout's prefix."""
        return replace(self, fork=(prefix_tokens, k))

    def of_turn(self, turn: int, part: int = 0) -> int:
        """Return the seed of one turn's request, in [0, 2**62).

        `part` counts the weight updates that cut the turn.
        """
        fork = "" if self.fork is None else f"{self.fork[0]} {self.fork[1]}"
        parts = [str(self.run_seed), str(self.step), self.question_id]
        parts += [str(self.rollout), fork, str(turn)]
        # Part 0 is left out: a turn that nothing cut has the seed that it always had.
        if part:
            parts.append(str(part))
        key = "\0".join(parts).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return int.from_bytes(digest, "big") >> (64 - _BITS)
