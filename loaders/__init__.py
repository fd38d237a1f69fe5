"""Feeds batches of a corpus to host and GPU memory."""

from loaders.collate import Pack, Pad
from loaders.loader import Loader
from loaders.progress import progress
from loaders.stats import LoaderStats

__all__ = ["Loader", "LoaderStats", "Pack", "Pad", "progress"]
