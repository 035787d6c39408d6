"""Makes the golden models of tests/golden/models that stand for other libraries' classes, and their outputs.

    pip install torch transformers open_clip_torch
    python tools/make_golden_models.py tests/golden/models

Each is a tiny model of random weights of the library's own class, saved by that class, beside `expected.npz`: inputs
and the embeddings that the class computes from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers
from safetensors.torch import save_file
from timm.models import vision_transformer

IMAGE, VOCABULARY, CONTEXT, EMBED = 16, 64, 10, 12
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": IMAGE, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
PROJECTION = {"projection_dim": EMBED}


def main(folder: Path) -> None:
    """Writes every model into a folder of its own."""
    torch.manual_seed(0)
    text = {**TEXT, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    metaclip = transformers.MetaClip2Config(text_config=text, vision_config=VISION, **PROJECTION)
    save(folder / "hf_metaclip_2", transformers.MetaClip2Model(metaclip), end=2)
    clip_vision = transformers.CLIPVisionConfig(**VISION, **PROJECTION)
    save(folder / "hf_clip_vision", transformers.CLIPVisionModelWithProjection(clip_vision))
    clip_text = transformers.CLIPTextConfig(**{**text, "eos_token_id": VOCABULARY - 1}, **PROJECTION)
    save(folder / "hf_clip_text", transformers.CLIPTextModelWithProjection(clip_text), end=VOCABULARY - 1)
    siglip_vision = transformers.SiglipVisionConfig(**VISION)
    save(folder / "hf_siglip_vision", transformers.SiglipVisionModel(siglip_vision))
    save_open_clip(folder / "open_clip_siglip")


def save(folder: Path, model: Any, *, end: int | None = None) -> None:
    """Saves a model of transformers; `end`: the id that ends the rows of tokens, None for a model without text."""
    scatter(model)
    model.eval().save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    found: dict[str, Any] = {}
    whole = hasattr(model, "logit_scale")
    with torch.no_grad():
        if hasattr(model, "vision_model") or "Vision" in type(model).__name__:
            pixels = torch.randn(3, 3, IMAGE, IMAGE)
            out = model.get_image_features(pixel_values=pixels) if whole else model(pixel_values=pixels)
            found |= {"pixel_values": pixels, "image_embeds": embedding(out)}
        if end is not None:
            ids = rows(end)
            out = model.get_text_features(input_ids=ids) if whole else model(input_ids=ids)
            found |= {"input_ids": ids, "text_embeds": embedding(out)}
    if whole:
        found["logit_scale"] = model.logit_scale
    write(folder, found)


def save_open_clip(folder: Path) -> None:
    """A SigLIP of open_clip: the tower of timm, with the text tower's options of the published ones."""

    @vision_transformer.register_model
    def vit_tiny_patch8_siglip_16(pretrained: bool = False, **kwargs: Any) -> Any:
        shape = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": IMAGE}
        return vision_transformer._create_vision_transformer(
            "vit_base_patch16_siglip_224", pretrained=False, **shape, class_token=False, **kwargs
        )

    name = "vit_tiny_patch8_siglip_16"
    config = {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": IMAGE, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 16,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = open_clip.CustomTextCLIP(**arguments).eval()
    scatter(model)
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    moments = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    content = {"model_cfg": config, "preprocess_cfg": moments}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")
    pixels, ids = torch.randn(3, 3, IMAGE, IMAGE), rows(1)
    with torch.no_grad():
        logits, _ = model.get_logits(pixels, ids)
        found = {
            "pixel_values": pixels,
            "image_embeds": model.encode_image(pixels, normalize=True),
            "input_ids": ids,
            "text_embeds": model.encode_text(ids, normalize=True),
            "logit_scale": model.logit_scale,
            "logits_per_image": logits,
        }
    write(folder, found)


def scatter(model: torch.nn.Module) -> None:
    """Moves every parameter away from its initial value, so that none is a zero or a one that hides a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def rows(end: int) -> torch.Tensor:
    """Rows of tokens of three lengths, and one with the end token twice, of which the first counts."""
    ids = torch.randint(3, VOCABULARY - 1, (4, CONTEXT))
    for row, length in enumerate((CONTEXT, 4, 2, 6)):
        ids[row, length - 1] = end
        ids[row, length:] = 1
    ids[3, 8] = end
    return ids


def embedding(out: Any) -> torch.Tensor:
    """The unit rows of what a class of transformers returns, whatever it calls them."""
    for name in ("image_embeds", "text_embeds", "pooler_output"):
        if getattr(out, name, None) is not None:
            return torch.nn.functional.normalize(getattr(out, name), dim=-1)
    return torch.nn.functional.normalize(out, dim=-1)


def write(folder: Path, found: dict[str, Any]) -> None:
    """Writes the inputs and outputs beside the model."""
    np.savez_compressed(folder / "expected.npz", **{name: np.asarray(value.detach()) for name, value in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
