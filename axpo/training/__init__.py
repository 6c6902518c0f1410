"""Training: the loop, the flow of questions into batches, the policy and its versions.

Also resume and replay. May import `axpo.evaluation`, `axpo.record`, `axpo.tasks`, `axpo.session`
and the engine rooms; never the report or fine-tuning. Start reading with `train_step` in
`trainer.py`, then `flow.py`; `run.py` starts and ends all of it.
"""
