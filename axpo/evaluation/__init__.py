"""Evaluation: what rollouts say about a policy, and how it does on the held-out questions.

It owns Pass@k, the paper's diagnostics and the held-out evaluation. It may import `axpo.session`,
`axpo.config`, `axpo.record`, `axpo.tasks` and the engine rooms, never `axpo.training`. Start
reading in `held_out.py`; every number is defined in `diagnostics.py`.
"""
