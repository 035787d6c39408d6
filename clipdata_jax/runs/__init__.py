"""A run: planned before it begins, resumed where it stopped, recorded and checked."""
