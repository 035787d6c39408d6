"""Choosing the image-text pairs that train the best CLIP, in JAX.

Names are resolved when first used (PEP 562): importing the package loads no jax and touches no device.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "clip_score": "scores",
    "neg_clip_loss": "scores",
    "neg_clip_loss_sharded": "scores",
    "cell_log_sums": "scores",
    "neg_clip_loss_divisions": "scores",
    "neg_clip_loss_statistics": "scores",
    "norm_sim": "scores",
    "norm_sim_sharded": "scores",
    "nearest_target": "scores",
    "nearest_target_sharded": "scores",
    "norm_sim_moment": "scores",
    "near_duplicates": "scores",
    "second_moment": "scores",
    "vas": "scores",
    "assign_clusters": "scores",
    "head_score": "scores",
    "lloyd_step": "scores",
    "CLIP": "models",
    "load_clip": "models",
    "load_tokenizer": "models",
    "load_image_transform": "models",
    "save_clip": "models",
    "InputError": "errors",
}
__all__ = ["__version__", *_HOME]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
