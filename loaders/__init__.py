"""Feeds batches of a corpus to host and GPU memory."""
