"""Files of heads: small networks that score image embeddings, as .safetensors or .npz."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from clipdata_jax import storage
from clipdata_jax.errors import InputError

if TYPE_CHECKING:
    from clipdata_jax.scores.heads import Activation

_NAME = re.compile(r"(?:(?P<layer>.*?)\.)?(?P<kind>weight|bias)")
_ACTIVATIONS = ("none", "relu", "sigmoid")
_NAMES = "names LAYER.weight, of shape (out, in), and LAYER.bias, LAYER ending in its number as in layers.0.weight"


@dataclasses.dataclass(frozen=True)
class Head:
    """A head.

    Attributes:
      layers: weight and bias of each layer, as `scores.head_score` takes them.
      activation: after each layer but the last.
      output: after the last.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    activation: Activation = "none"
    output: Activation = "none"


def read_head(path: str, dim: int) -> Head:
    """Reads a head.

    Layers are in the order of their numbers (`layers.0.weight`, `layers.2.weight`, as PyTorch's Sequential counts); a
    linear head may have `weight` and `bias` alone. What follows a layer is said by `activation`, and for the last by
    `output`: "none" (the default), "relu" or "sigmoid", in the metadata of .safetensors or as texts in .npz.

    Args:
      path: a .safetensors or .npz file.
      dim: the length of the embeddings that it is to score.

    Raises:
      InputError: it can't be read, has other names or shapes, or is for embeddings of another length.
    """
    arrays, texts = _read(path)
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        number = re.search(r"\d+$", match["layer"]) if match and match["layer"] else None
        if match is None or (match["layer"] and number is None):
            raise InputError(f"{path}: has an array {name!r}; expected the {_NAMES}")
        held = layers.setdefault(int(number[0]) if number else 0, {})
        if match["kind"] in held:
            raise InputError(f"{path}: has two arrays of layer {number[0] if number else 0}, {name!r} for one")
        held[match["kind"]] = array
    if not layers:
        raise InputError(f"{path}: holds no layers; expected the {_NAMES}")
    size = dim
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for layer, held in sorted(layers.items()):
        if set(held) != {"weight", "bias"}:
            raise InputError(f"{path}: layer {layer} has only a {next(iter(held))}; expected weight and bias")
        weight, bias = held["weight"].astype(np.float32), held["bias"].astype(np.float32)
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise InputError(
                f"{path}: layer {layer} has weight {weight.shape} and bias {bias.shape}; expected {_NAMES}"
            )
        if weight.shape[1] != size:
            of = "the pool's embeddings have" if not found else "the layer before it gives"
            raise InputError(f"{path}: layer {layer} takes {weight.shape[1]} values, but {of} {size}")
        size = weight.shape[0]
        found.append((weight, bias))
    if size != 1:
        raise InputError(f"{path}: its last layer gives {size} values, expected one, the score")
    return Head(tuple(found), _activation(path, texts, "activation"), _activation(path, texts, "output"))


def _activation(path: str, texts: Mapping[str, str], name: str) -> Activation:
    match texts.get(name, "none"):
        case "none" | "relu" | "sigmoid" as found:
            return found
        case other:
            raise InputError(f"{path}: its {name} is {other!r}; choose from {', '.join(_ACTIVATIONS)}")


def _read(path: str) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    if not path.endswith((".safetensors", ".npz")):
        raise InputError(f"{path}: expected a head in a .safetensors or .npz file")
    data = storage.read_bytes(path)
    try:
        if path.endswith(".npz"):
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                held = dict(file)
            texts = {name: str(array) for name, array in held.items() if array.dtype.kind == "U"}
            return {name: array for name, array in held.items() if name not in texts}, texts
        return _read_safetensors(data)
    except Exception as error:
        raise InputError(f"{path}: can't be read ({error}); write it again") from error


def _read_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    import json

    from safetensors.numpy import load

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), header.get("__metadata__", {})
