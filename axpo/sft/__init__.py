"""Supervised fine-tuning: demonstrations, the stages of a curriculum, and how the embedded models are built.

May import `axpo.training`, `axpo.evaluation`, `axpo.tasks`, `axpo.session` and the engine rooms.
Start reading in `fine_tune.py`.
"""
