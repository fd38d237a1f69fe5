"""Moves training corpora between object, block, file and memory tiers, verified end to end."""

from tiering.cache import NodeCache
from tiering.config import load_config
from tiering.corpus import Corpus, open_corpus
from tiering.errors import TieringError
from tiering.ingest import ingest
from tiering.plan import MovePlan, plan_move
from tiering.release import release
from tiering.scrub import verify
from tiering.tier import Prices, Tier, open_tier

__all__ = [
    "Corpus",
    "MovePlan",
    "NodeCache",
    "Prices",
    "Tier",
    "TieringError",
    "ingest",
    "load_config",
    "open_corpus",
    "open_tier",
    "plan_move",
    "release",
    "verify",
]
__version__ = "0.1.0"
