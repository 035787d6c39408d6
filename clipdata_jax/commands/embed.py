"""`clipdata embed`: images and captions in, embedding shards out."""

from __future__ import annotations

from clipdata_jax.embedding.embedder import run as run
