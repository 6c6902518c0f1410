"""Grouped multi-turn rollouts on vLLM.

This room owns the `Trajectory`, the one contract between the rooms, and all that makes one: the
chat format, the parser of tool calls, the agent loop, the engine, the workers and their pool. It
imports no other room. Start reading in `trajectory.py`; then `pool.py` (the driver's view),
`worker.py` (one engine) and `agent.py` (one rollout).
"""
