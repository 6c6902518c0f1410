"""Evaluation: what rollouts say about a policy, and how it does on questions and benchmarks.

It owns Pass@k, the paper's diagnostics, the held-out evaluation, and the benchmarks with their
results on disk. It may import `axpo.session`, `axpo.config`, `axpo.record`, `axpo.tasks` and the
engine rooms, never `axpo.training`. Start reading in `held_out.py`; every number of training is
defined in `diagnostics.py`. Of the benchmarks start in `benchmark.py`, then `measure.py`;
`decontaminate.py` finds them in training data.
"""
