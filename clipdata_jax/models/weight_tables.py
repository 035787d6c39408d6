"""Tables of the tensors in a checkpoint file and our parameters, one a format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class TensorRule(NamedTuple):
    """A row of a table: a regex on tensors' names, our path (None: not read), the transpose on loading.

    `part`: the number of the parameter where the tensor holds several of ours, `parts`, concatenated along its first
    axis.
    """

    source: str
    target: str | None
    transpose: tuple[int, ...] | None = None
    part: int = 0
    parts: int = 1


WeightTable = tuple[TensorRule, ...]
# PyTorch's dense weights are (out, in), its patches (out, in, height, width).
_DENSE, _PATCHES = (1, 0), (2, 3, 1, 0)


def _dense(source: str, target: str) -> Iterator[TensorRule]:
    yield TensorRule(source + r"\.weight", target + ".kernel", _DENSE)
    yield TensorRule(source + r"\.bias", target + ".bias")


def _norm(source: str, target: str) -> Iterator[TensorRule]:
    yield TensorRule(source + r"\.weight", target + ".scale")
    yield TensorRule(source + r"\.bias", target + ".bias")


def _fused(source: str, target: str, names: str = "qkv") -> Iterator[TensorRule]:
    """Input projections of an attention that are one tensor, as the three in torch.nn.MultiheadAttention."""
    for part, name in enumerate(names):
        yield TensorRule(source + "weight", f"{target}{name}.kernel", _DENSE, part, len(names))
        yield TensorRule(source + "bias", f"{target}{name}.bias", None, part, len(names))


# Groups must not be nested: `source_name` inverts a table by swapping groups and back references.
_LAYER, _OUR_LAYER = r"(text|vision)_model\.encoder\.layers\.(\d+)\.", r"\1.layers.\2."
_TRANSFORMERS = (
    *_dense(_LAYER + r"self_attn\.(q|k|v|out)_proj", _OUR_LAYER + r"attention.\3"),
    *_dense(_LAYER + r"mlp\.(fc1|fc2)", _OUR_LAYER + r"mlp.\3"),
    *_norm(_LAYER + r"layer_norm(1|2)", _OUR_LAYER + r"norm\3"),
    TensorRule(r"text_model\.embeddings\.token_embedding\.weight", "text.token"),
    TensorRule(r"(text|vision)_model\.embeddings\.position_embedding\.weight", r"\1.position"),
    TensorRule(r"vision_model\.embeddings\.patch_embedding\.weight", "vision.patch_kernel", _PATCHES),
    *_norm(r"vision_model\.post_layernorm", "vision.post_norm"),
    *_norm(r"text_model\.final_layer_norm", "text.post_norm"),
    TensorRule(r"logit_scale", "logit_scale"),
    TensorRule(r"(?:text|vision)_model\.embeddings\.position_ids", None),  # 0, 1, 2, ...: a buffer of older files
)
CLIP_TABLE: WeightTable = (
    *_TRANSFORMERS,
    TensorRule(r"vision_model\.embeddings\.class_embedding", "vision.class_embedding"),
    *_norm(r"vision_model\.pre_layrnorm", "vision.pre_norm"),  # sic
    TensorRule(r"visual_projection\.weight", "vision.projection.kernel", _DENSE),
    TensorRule(r"text_projection\.weight", "text.projection.kernel", _DENSE),
)
SIGLIP_TABLE: WeightTable = (
    *_TRANSFORMERS,
    TensorRule(r"logit_bias", "logit_bias"),
    TensorRule(r"vision_model\.embeddings\.patch_embedding\.bias", "vision.patch_bias"),
    TensorRule(r"vision_model\.head\.probe", "vision.head.probe"),
    *_fused(r"vision_model\.head\.attention\.in_proj_", "vision.head.attention."),
    *_dense(r"vision_model\.head\.attention\.out_proj", "vision.head.attention.out"),
    *_norm(r"vision_model\.head\.layernorm", "vision.head.norm"),
    *_dense(r"vision_model\.head\.mlp\.(fc1|fc2)", r"vision.head.mlp.\1"),
    *_dense(r"text_model\.head", "text.projection"),
)


def _open_clip_tower(source: str, target: str) -> Iterator[TensorRule]:
    layer, our_layer = source + r"transformer\.resblocks\.(\d+)\.", target + r".layers.\1."
    yield from _fused(layer + r"attn\.in_proj_", our_layer + "attention.")
    yield from _dense(layer + r"attn\.out_proj", our_layer + "attention.out")
    yield from _dense(layer + r"mlp\.c_fc", our_layer + "mlp.fc1")
    yield from _dense(layer + r"mlp\.c_proj", our_layer + "mlp.fc2")
    yield from _norm(layer + r"ln_(1|2)", our_layer + r"norm\2")
    yield TensorRule(layer + r"ls_(1|2)\.gamma", our_layer + r"scale\2")
    yield TensorRule(source + r"positional_embedding", target + ".position")


_OPEN_CLIP_VISION: WeightTable = (
    *_open_clip_tower(r"visual\.", "vision"),
    TensorRule(r"visual\.conv1\.weight", "vision.patch_kernel", _PATCHES),
    TensorRule(r"visual\.class_embedding", "vision.class_embedding"),
    *_norm(r"visual\.ln_pre", "vision.pre_norm"),
    *_norm(r"visual\.ln_post", "vision.post_norm"),
    TensorRule(r"visual\.proj", "vision.projection.kernel"),  # (in, out) already
)
_TRUNK, _BLOCK, _OUR_BLOCK = r"visual\.trunk\.", r"visual\.trunk\.blocks\.(\d+)\.", r"vision.layers.\1."
_TIMM_VISION: WeightTable = (
    *_fused(_BLOCK + r"attn\.qkv\.", _OUR_BLOCK + "attention."),
    *_dense(_BLOCK + r"attn\.proj", _OUR_BLOCK + "attention.out"),
    *_dense(_BLOCK + r"mlp\.(fc1|fc2)", _OUR_BLOCK + r"mlp.\2"),
    *_norm(_BLOCK + r"norm(1|2)", _OUR_BLOCK + r"norm\2"),
    TensorRule(_TRUNK + r"patch_embed\.proj\.weight", "vision.patch_kernel", _PATCHES),
    TensorRule(_TRUNK + r"patch_embed\.proj\.bias", "vision.patch_bias"),
    TensorRule(_TRUNK + r"pos_embed", "vision.position"),
    *_norm(_TRUNK + "norm", "vision.post_norm"),
    TensorRule(_TRUNK + r"attn_pool\.latent", "vision.head.probe"),
    *_dense(_TRUNK + r"attn_pool\.q", "vision.head.attention.q"),
    *_fused(_TRUNK + r"attn_pool\.kv\.", "vision.head.attention.", "kv"),
    *_dense(_TRUNK + r"attn_pool\.proj", "vision.head.attention.out"),
    *_norm(_TRUNK + r"attn_pool\.norm", "vision.head.norm"),
    *_dense(_TRUNK + r"attn_pool\.mlp\.(fc1|fc2)", r"vision.head.mlp.\1"),
)


def open_clip_table(*, text_prefix: str = "", timm: bool = False, projection_bias: bool = False) -> WeightTable:
    """The table of open_clip's `CLIP` or, with text_prefix "text.", of its `CustomTextCLIP`.

    `timm`: whether the vision tower is timm's. `projection_bias`: whether the text tower's projection has a bias.
    """
    text = text_prefix.replace(".", r"\.")
    name, target = text + "text_projection", "text.projection"
    return (
        *(_TIMM_VISION if timm else _OPEN_CLIP_VISION),
        *_open_clip_tower(text, "text"),
        TensorRule(text + r"token_embedding\.weight", "text.token"),
        *_norm(text + r"ln_final", "text.post_norm"),
        *(_dense(name, target) if projection_bias else [TensorRule(name, f"{target}.kernel")]),  # (in, out) already
        TensorRule(r"logit_scale", "logit_scale"),
        TensorRule(r"logit_bias", "logit_bias"),
        TensorRule(text + r"attn_mask", None),  # the causal mask: a buffer of older files
    )


def source_name(target: str, table: WeightTable = CLIP_TABLE) -> tuple[str, TensorRule]:
    """Finds the name in the file of one of our parameters, and its row of the table.

    Args:
      target: our path, e.g. "text.layers.0.mlp.fc1.kernel".
      table: the format's table.

    Raises:
      ValueError: the table has no such parameter.
    """
    for rule in table:
        if rule.target is None:
            continue
        groups = re.findall(r"\([^()]*\)", rule.source)
        pattern, name = rule.target.replace(".", r"\."), rule.source.replace(r"\.", ".")
        for index, group in enumerate(groups, start=1):
            pattern = pattern.replace(f"\\{index}", group)
            name = name.replace(group, f"\\{index}", 1)
        if match := re.fullmatch(pattern, target):
            return match.expand(name), rule
    raise ValueError(f"the weight table has no parameter {target!r}")
