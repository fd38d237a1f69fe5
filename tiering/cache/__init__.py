"""The node cache: copies of shards on one node, shared by all who read there; see `tiering.cache.cache`."""

from tiering.cache.cache import NodeCache
from tiering.cache.content import STORE_NAME
from tiering.cache.registration import Outlook, Registration, numbers_of
from tiering.cache.status import CacheStatus

__all__ = ["STORE_NAME", "CacheStatus", "NodeCache", "Outlook", "Registration", "numbers_of"]
