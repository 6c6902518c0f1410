"""Record: the folder of a run, and how everything in it is written and read back.

It owns every file of a run: metrics, sampled groups, timelines, events, checkpoints, the summary.
It may import `axpo.errors`, `learner.manifest` and `rollout_workers.trajectory`; nothing here
starts or trains anything. Start reading in `run.py`; its first lines list the files.
"""
