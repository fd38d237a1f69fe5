"""The command `tiering`: a thin layer over the Python interface, one module per group of commands."""
