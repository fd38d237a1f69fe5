"""Sources: one reader per kind of input, behind the small contract in `base`."""
