"""Benchmarks and figures. Speeds are ratios taken in one run; see docs/benchmarks.md."""
