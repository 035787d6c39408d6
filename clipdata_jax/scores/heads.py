"""Scores of image embeddings by a small network on top of them, such as LAION's aesthetic predictor."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clipdata_jax.scores.products import AnyArray

Activation = Literal["none", "relu", "sigmoid"]
Layer = tuple[Float[AnyArray, "_ _"], Float[AnyArray, " _"]]
_FUNCTIONS = {"none": lambda x: x, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def head_score(
    image_emb: Float[AnyArray, "b d"],
    layers: Sequence[Layer],
    *,
    activation: Activation = "none",
    output: Activation = "none",
) -> Float[Array, " b"]:
    """Scores each row by a linear function, or by a multilayer perceptron.

        h_0 = f,   h_l = a(W_l h_(l-1) + b_l),   s = o(W_L h_(L-1) + b_L)

    LAION's aesthetic predictor of 2022 is linear on CLIP L/14 embeddings; its second version ("improved", Schuhmann)
    has layers of 1024, 128, 64, 16 and 1 without activations.

    Args:
      image_emb: f, shape (b, d), any float dtype; computed in float32.
      layers: the weight W, shape (out, in), and bias b, shape (out,), of each layer; the last has one output.
      activation: a, after each layer but the last.
      output: o, after the last.

    Returns:
      s, shape (b,), float32.

    Raises:
      ValueError: the shapes don't fit together.

    >>> import numpy as np
    >>> from clipdata_jax import head_score
    >>> layers = [(np.eye(2, dtype=np.float32), np.zeros(2)), (np.array([[2.0, 1.0]]), np.ones(1))]
    >>> print(np.asarray(head_score(np.array([[0.6, 0.8], [1.0, 0.0]]), layers)).round(3))
    [3. 3.]
    """
    size = image_emb.shape[-1]
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != size or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"a layer has weight {weight.shape} and bias {bias.shape}, but its input has {size} values"
            )
        size = weight.shape[0]
    if size != 1:
        raise ValueError(f"the last layer has {size} outputs, expected 1")
    return _head_score(image_emb, tuple(map(tuple, layers)), activation=activation, output=output)


@functools.partial(jax.jit, static_argnames=("activation", "output"))
def _head_score(image_emb: Array, layers: tuple[Layer, ...], *, activation: Activation, output: Activation) -> Array:
    h_bd = image_emb.astype(jnp.float32)
    for number, (weight, bias) in enumerate(layers, start=1):
        # The default precision of a TPU would round each layer's input to 8 bits.
        h_bd = jnp.einsum("bi,oi->bo", h_bd, weight.astype(jnp.float32), precision="highest")
        h_bd = _FUNCTIONS[output if number == len(layers) else activation](h_bd + bias.astype(jnp.float32))
    return h_bd[:, 0]
