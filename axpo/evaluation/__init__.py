"""Evaluation: held-out questions, what a policy's rollouts say about it, and Pass@k.

May import `axpo.session`, `axpo.record`, `axpo.tasks` and the engine rooms; never `axpo.training`.
Start reading in `held_out.py`; every number is defined in `diagnostics.py`.
"""
