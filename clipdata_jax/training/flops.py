"""Floating-point operations of a training step, and the peak rates of known devices."""

from __future__ import annotations

from clipdata_jax.models import CLIPConfig
from clipdata_jax.models.clip_config import TowerConfig

# Dense bfloat16 (float16 on V100 and T4) products of one jax device, in 10^12 operations a second, as their makers
# state them: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and NVIDIA's data sheets. The first name
# that a device's kind begins with counts.
_PEAKS = {
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4 lite": 138,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v6": 918,
    "TPU7x": 1153.5,
    "NVIDIA GB200": 2500,
    "NVIDIA B200": 2250,
    "NVIDIA GH200": 989,
    "NVIDIA H200": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100": 989,
    "NVIDIA A100": 312,
    "NVIDIA A10G": 70,
    "NVIDIA A10": 125,
    "NVIDIA L40S": 362,
    "NVIDIA L40": 181,
    "NVIDIA L4": 121,
    "NVIDIA RTX A6000": 155,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165,
    "Tesla V100": 125,
    "Tesla T4": 65,
}


def flops_per_pair(config: CLIPConfig, batch_size: int) -> float:
    """Estimates the floating-point operations that a training step needs for one pair.

    Three times the products of the towers and of the logits: forward once, backward twice. What is computed again to
    save memory (`remat`, `microbatch`) is not counted, as in the model FLOPs of Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B.

    Args:
      config: with both towers.
      batch_size: pairs in the contrastive batch.

    Returns:
      The number of operations, a product and a sum being two.

    Raises:
      ValueError: a tower is missing.

    >>> from clipdata_jax.models import CLIPConfig, TextConfig, VisionConfig
    >>> vision = VisionConfig(width=768, layers=12, heads=12, mlp_width=3072)
    >>> text = TextConfig(width=512, layers=12, heads=8, mlp_width=2048)
    >>> config = CLIPConfig(vision=vision, text=text, embed_dim=512)
    >>> f"{flops_per_pair(config, 4_096) / 3:.3g}"  # of ViT-B/32, forward
    '1.48e+10'
    """
    vision, text = config.vision, config.text
    if vision is None or text is None:
        raise ValueError("the model has one tower, expected two")
    images = _layers(vision, vision.patches + vision.has_class_token)
    images += 2 * vision.patches * 3 * vision.patch_size**2 * vision.width
    texts = _layers(text, text.context_length)
    projections = 2 * (vision.width + text.width) * config.embed_dim
    return 3.0 * (images + texts + projections + 2 * batch_size * config.embed_dim)


def _layers(tower: TowerConfig, tokens: int) -> int:
    matrices = 4 * tower.width**2 + 2 * tower.width * tower.mlp_width
    return tower.layers * (2 * tokens * matrices + 4 * tokens**2 * tower.width)


def peak_flops(device_kind: str) -> float | None:
    """Looks up the bfloat16 products of a device, in operations a second; None for one that isn't known, and CPUs.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("cpu")
    (989000000000000.0, None)
    """
    for name, peak in _PEAKS.items():
        if device_kind.startswith(name):
            return peak * 1e12
    return None
