"""Other people's tools on the same data; each runs in a Python of its own, which has what it needs."""
