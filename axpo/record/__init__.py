"""Record: the folder of a run, and how everything in it is written and read back.

It owns every file of a run: metrics, sampled groups, timelines, events, checkpoints, the summary.
It may import `axpo.trackers`, the small modules beside it (`axpo.errors`, `axpo.texts`,
`axpo.plain_files`, `axpo.strict_yaml`), `learner.manifest` and `rollout_workers.trajectory`.
Nothing here starts or trains anything. Start reading in `run.py`; its first lines list the files.
"""
