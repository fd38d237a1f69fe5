"""Moves training corpora between object, block, file and memory tiers, verified end to end."""
