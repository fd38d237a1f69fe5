"""Stores: where bytes lie. `base` states the contract; one module per kind of medium keeps it."""
