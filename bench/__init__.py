"""Benchmarks: one script a row of docs/performance.md. `scripts/bench` runs them all; see bench/README.md."""
