"""Scheduled tiering jobs: what to move where, told in TOML."""
