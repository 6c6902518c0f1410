"""Record: the folder of a run, and how groups, events and summaries are written to it and read back.

May import `axpo.errors`, `learner.manifest` and `rollout_workers.trajectory`; nothing that starts or trains anything.
Start reading in `run.py`.
"""
