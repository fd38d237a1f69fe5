"""Measures the loader on a corpus of the user's: ``tiering bench-loader``."""
