"""Benchmarks: one script a claim, run by ``python -m bench NAME``; each prints ratios measured in one run as JSON."""
