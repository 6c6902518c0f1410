"""Grouped multi-turn rollouts on vLLM; owns the Trajectory, the one contract between the rooms."""
