"""AXPO: reinforcement learning of tool use for vision-language agents, on Ray, vLLM and DeepSpeed ZeRO-3."""

__version__ = "0.1.0"
