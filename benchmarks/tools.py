"""Run `make bench-tools`: the tool server's benchmarks, into results/tools.json."""

from __future__ import annotations

from benchmarks.result import exit_with, imported, run

MODULES = ("bench_python", "bench_zoom", "bench_search", "bench_server")
EXPECTED = (
    "python_warm_vs_bare_imports",
    "python_sandbox_vs_fork_latency",
    "python_sandbox_vs_fork_rate",
    "zoom_vs_pillow",
    "search_median_ms",
    "search_recall_at_5",
    "server_overhead_ms",
)


if __name__ == "__main__":
    packages = ("numpy", "pillow", "ray", "tantivy", "pydantic")
    exit_with(run("tools", EXPECTED, [imported(module) for module in MODULES], packages))
