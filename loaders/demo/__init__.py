"""The main job on real text, end to end: what `tiering demo` runs."""
