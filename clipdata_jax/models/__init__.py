"""CLIP's and SigLIP's towers, and what a checkpoint holds: weights, tokenizer, image preprocessing.

Names are resolved when first used (PEP 562): a process that only decodes images loads no jax.
"""

from __future__ import annotations

from clipdata_jax.lazy_names import lazy_names

_HOME = {
    "sized_config": "architectures",
    "sizes_of": "architectures",
    "CLIP": "clip",
    "CLIPConfig": "clip_config",
    "TextConfig": "clip_config",
    "TowerConfig": "clip_config",
    "VisionConfig": "clip_config",
    "load_image_transform": "image_settings",
    "write_preprocessor_config": "image_settings",
    "ImageTransform": "image_transform",
    "open_image": "image_transform",
    "shrunk_image": "image_transform",
    "checkpoint_digest": "load",
    "load_clip": "load",
    "load_tokenizer": "tokenizer_files",
    "SIGLIP_BASE_PATCH16_224": "published_models",
    "SIGLIP_SO400M_PATCH14_384": "published_models",
    "VIT_B_16": "published_models",
    "VIT_B_32": "published_models",
    "VIT_BIG_G_14": "published_models",
    "VIT_H_14": "published_models",
    "VIT_L_14": "published_models",
    "VIT_L_14_336": "published_models",
    "VIT_SMALL_G_14": "published_models",
    "Tokenizer": "tokenizer",
    "train_tokenizer": "tokenizer_training",
    "layouts_of": "weights",
    "save_clip": "weights",
}
__all__ = [*_HOME]
__getattr__, __dir__ = lazy_names(__name__, _HOME)
