"""Keys of older recipes that have moved. Each is refused, and the message names its new place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOVED: Mapping[str, str] = {
    "learner.clip_low": "moved to learner.objective.clip_low",
    "learner.clip_high": "moved to learner.objective.clip_high",
    "learner.loss_length": "moved to learner.objective.loss_length",
    "learner.temperature": "leave it out: the learner takes rollout.temperature",
    "learner.weight_transfer": "leave it out: the learner takes rollout.engine.weight_transfer",
    "learner.receiver_ranks": "leave it out: it follows from rollout.engine.tensor_parallel_size",
    "learner.threads": "leave it out: it follows from learner.cpus_per_rank",
    "logging.tensorboard": "is now logging.trackers: [tensorboard]",
    "resampler.budget_ratio": "moved to resampler.budget.ratio",
    "resampler.target_recovery": "moved to resampler.budget.target_recovery (name: adaptive)",
    "resampler.target_cost_s": "moved to resampler.budget.target_cost_s (name: adaptive)",
    "resampler.call_costs": "moved to resampler.budget.call_costs (name: adaptive)",
    "resampler.success_above": "moved to resampler.trigger.success_above",
    "resampler.success_quantile": "moved to resampler.trigger.quantile (name: quantile)",
    "task.verify": "moved to task.verifier",
    "task.tolerance": "moved to task.verifier.tolerance (name: numeric)",
}
"""Where the setting of an older key is now."""


def moved_keys(data: Mapping[str, Any]) -> list[str]:
    """Return one message for each key of a recipe's fields that has moved.

    A task also stands in the stages of fine-tuning (`sft.stages`) and in the families of a mixed
    task, so the end of a key's path is compared.
    """
    messages = []
    # Only the names decide: an older run's recipe has these keys even if they have their defaults.
    for path in _paths(data, ()):
        section_and_name = ".".join(path[-2:])
        if section_and_name in MOVED:
            messages.append(f"{'.'.join(path)}: {MOVED[section_and_name]}")
    return messages


def _paths(value: Any, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value inside mappings and lists."""
    if isinstance(value, Mapping):
        inner = [(str(name), child) for name, child in value.items()]
    elif isinstance(value, list):
        inner = [(str(position), child) for position, child in enumerate(value)]
    else:
        return
    for name, child in inner:
        yield (*above, name)
        yield from _paths(child, (*above, name))
