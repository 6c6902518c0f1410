"""AXPO: reinforcement learning of tool use for vision-language agents.

On Ray, vLLM and DeepSpeed ZeRO-3. This room owns the command line, the recipe, the training loop,
tasks, evaluation, the run directory and the report; it may import every other room. Start reading
with `train_step` in `axpo/training/trainer.py`, or with `docs/architecture.md`.
"""

__version__ = "0.1.0"
