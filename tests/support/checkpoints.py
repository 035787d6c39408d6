"""A tiny random CLIP with its tokenizer, as a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from flax import nnx

from clipdata_jax import models

CAPTIONS = ["a red house beside a tree", "two blue boats on the sea", "a yellow star above a snowy field"]


def make_checkpoint(folder: Path, *, image_size: int = 32, embed_dim: int = 16, seed: int = 0) -> Path:
    tokenizer = models.train_tokenizer(CAPTIONS, folder, vocab_size=600, context_length=16)
    tower = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64}
    config = models.CLIPConfig(
        vision=models.VisionConfig(**tower, image_size=image_size, patch_size=8),
        text=models.TextConfig(
            **tower,
            vocab_size=tokenizer.vocab_size,
            context_length=tokenizer.context_length,
            eos_token_id=tokenizer.eos_token_id,
        ),
        embed_dim=embed_dim,
    )
    models.save_clip(models.CLIP(config, rngs=nnx.Rngs(seed)), folder)
    return folder
