"""Sizes of a CLIP for `plan`: its parameters, the operations of its products, what training keeps. Plain arithmetic."""

from __future__ import annotations

from typing import Any


def parameters(config: Any) -> int:
    """Numbers in a model's matrices and tables.

    Args:
      config: a `models.CLIPConfig`.
    """
    vision, text = config.vision, config.text
    towers = sum(tower.layers * _layer(tower) for tower in (vision, text))
    projections = (vision.width + text.width) * config.embed_dim
    positions = (vision.patches + 1) * vision.width + text.context_length * text.width
    return towers + projections + positions + _patch(vision) + text.vocab_size * text.width


def picture_operations(config: Any) -> float:
    """Multiplications and additions of the products for a picture."""
    vision = config.vision
    at_one = vision.pool == "class"
    return 2.0 * vision.patches * _patch(vision) + _tower_operations(vision, _tokens(vision), at_one)


def caption_operations(config: Any, length: int | None = None) -> float:
    """The same for a caption of so many tokens; default: as many as the model takes."""
    text = config.text
    return _tower_operations(text, length or text.context_length, True)


def kept(config: Any, length: int) -> int:
    """Numbers that a step of training keeps of a picture and its caption of so many tokens for the way back."""
    vision, text = config.vision, config.text
    pixels = 2 * 3 * vision.image_size**2
    return pixels + _kept_of_tower(vision, _tokens(vision)) + _kept_of_tower(text, length)


def alive(config: Any) -> int:
    """Numbers that embedding a picture has at one time: what a layer adds to, attention's inputs, the MLP's inside."""
    vision, tokens = config.vision, _tokens(config.vision)
    return tokens * (4 * vision.width + vision.mlp_width) + 2 * vision.heads * tokens**2


def _tokens(vision: Any) -> int:
    return vision.patches + vision.has_class_token


def _patch(vision: Any) -> int:
    return 3 * vision.patch_size**2 * vision.width


def _layer(tower: Any) -> int:
    return 4 * tower.width**2 + 2 * tower.width * tower.mlp_width


def _tower_operations(tower: Any, tokens: int, at_one: bool) -> float:
    """Of all layers; where one token is read, the last layer computes its keys and values alone for the others."""
    whole = 2.0 * tokens * _layer(tower) + 4.0 * tokens**2 * tower.width
    last = 2.0 * (2 * tokens * tower.width**2 + _layer(tower)) + 4.0 * tokens * tower.width
    return (tower.layers - 1) * whole + (last if at_one else whole)


def _kept_of_tower(tower: Any, tokens: int) -> int:
    """As XLA lays it out: norms, queries, keys, values and the mix, the MLP's inside, attention's weights.

    Of the last layer, which is read at one token, little more than keys and values.
    """
    layer = tokens * (11 * tower.width + 3 * tower.mlp_width) + 3 * tower.heads * tokens**2
    return (tower.layers - 1) * layer + 5 * tokens * tower.width
