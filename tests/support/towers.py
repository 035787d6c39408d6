"""Small towers and what they read."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from clipdata_jax.models import CLIPConfig, TextConfig, VisionConfig

# One layer a tower: compiling is what takes time here, and layers are alike.
SMALL = CLIPConfig(
    vision=VisionConfig(width=32, layers=1, heads=2, mlp_width=64, image_size=16, patch_size=8),
    text=TextConfig(width=24, layers=1, heads=2, mlp_width=48, vocab_size=40, context_length=8, eos_token_id=39),
    embed_dim=16,
    image_mean=(0.1, 0.2, 0.3),
    image_std=(0.5, 0.25, 2.0),
)
# 16 pixels hold two patches of 7, and two pixels are left over.
SIGLIP = CLIPConfig(
    vision=dataclasses.replace(SMALL.vision, width=16, pool="attention", patch_size=7),
    text=dataclasses.replace(SMALL.text, causal=False, pool="last", projection_bias=True),
    embed_dim=16,
    logit_bias_init=-10.0,
)


# Compiling is what takes time here. Parity is tested with the default options; elsewhere code need not be fast.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def images(n: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), np.uint8)


def captions(n: int, *, seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(1, 38, (n, 8), np.int32)
    ids[:, 0], ids[np.arange(n), 2 + np.arange(n) % 6] = 38, 39
    return ids
