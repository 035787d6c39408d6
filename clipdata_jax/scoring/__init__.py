"""Embeddings in, score columns out, the same on any number of devices and processes."""
