"""How many requests and bytes a cache of each size misses."""

from policies.curves.ratios import Curve, Point, curve, sampled_curve

__all__ = ["Curve", "Point", "curve", "sampled_curve"]
