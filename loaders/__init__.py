"""Feeds batches of a corpus, or of several, to host and GPU memory."""

from loaders.collate import Pack, Pad
from loaders.loader import Loader
from loaders.mixture import Mixture
from loaders.mixture_stats import CorpusStats, MixtureStats
from loaders.progress import progress
from loaders.stats import LoaderStats

__all__ = ["CorpusStats", "Loader", "LoaderStats", "Mixture", "MixtureStats", "Pack", "Pad", "progress"]
