"""The learner: outcomes become advantages, advantages an update of the ZeRO-3 policy.

Owns: credit, objectives and baselines, the loss, the ZeRO-3 ranks, their checkpoints, and the way
of the new weights to the engines.

Imports: `rollout_workers.trajectory` (the contract), and `axpo.registry` of the package above. The
driver imports `config`, `credit` and `learner`, which load neither torch nor DeepSpeed; everything
else lives in the ranks' own processes.

Read `credit.py` first (which token gets which advantage), then `objectives.py` and `loss.py` (what
an advantage does), then `update.py` (what one rank computes). `learner.py` is the way in from
outside.
"""
