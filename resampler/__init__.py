"""Choose which failed tool calls are forked.

Owns rules 1 to 3 of the method (docs/method.md): which questions trigger, which prefixes come
first, and how many are forked. It runs no engine: the forks go through the rollout pool.
May import `rollout_workers.trajectory`, `axpo.registry` and `axpo.errors`.
Start reading at `select.py`, then `resampler.py`.
"""
