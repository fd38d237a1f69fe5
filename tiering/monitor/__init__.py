"""What the engine is doing right now: counters in every process, gathered by Dask, shown on its dashboard.

Invariant: what counts (`stats`) needs neither Dask nor bokeh, and nothing is ever published but numbers and
the names of tiers and moves: no path, no key, no credential.
"""
