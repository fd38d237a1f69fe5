"""Benchmarks: one script a claim, run by ``python -m bench NAME``; each prints ratios of one run as JSON."""
