"""The three small families of questions that come with AXPO: digits to zoom in on, products, and facts to search for.

May import `axpo.tasks` and `rollout_workers.trajectory`. Start reading in `small_digit.py`.
"""
