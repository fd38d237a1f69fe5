"""Declarative rules to actions: what moves, is copied, goes or stays, over a whole catalogue at once."""

from policies.lifecycle.catalogue import Catalogue
from policies.lifecycle.outcome import Outcome, Step, Verdict, apply_rules
from policies.lifecycle.rule import Rule
from policies.lifecycle.rules import Rules, load_rules

__all__ = ["Catalogue", "Outcome", "Rule", "Rules", "Step", "Verdict", "apply_rules", "load_rules"]
