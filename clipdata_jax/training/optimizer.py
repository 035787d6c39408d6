"""CLIP's optimiser: AdamW with a linear warm-up and a cosine decay."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def learning_rate_at(step: int | Int[Array, ""], *, peak: float, warmup: int, steps: int) -> Float[Array, ""]:
    """Computes the learning rate of a step: linear warm-up, then cosine decay to zero.

    In step k = 0, 1, ... of n, with w steps of warm-up, it is

        peak (k + 1) / w                          for k < w,
        peak (1 + cos(pi (k - w) / (n - w))) / 2  after them.

    Args:
      step: k.
      peak: the highest rate.
      warmup: w; 0 for none.
      steps: n.

    Returns:
      The rate, a float32 scalar.

    >>> from clipdata_jax.training import learning_rate_at
    >>> [round(float(learning_rate_at(step, peak=1.0, warmup=2, steps=6)), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rising = (step + 1) / max(warmup, 1)
    falling = (1 + jnp.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2
    return peak * jnp.where(step < warmup, rising, falling)


def adamw(
    *,
    learning_rate: float,
    warmup: int,
    steps: int,
    weight_decay: float,
    beta2: float = 0.98,
    clip_norm: float | None = None,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Creates CLIP's optimiser: AdamW, linear warm-up, cosine decay to zero.

    The schedule, `learning_rate_at`, is open_clip's and DataComp's; the rest is Radford et al. 2021, arXiv:2103.00020,
    table 18. Weight decay applies to arrays of two or more dimensions: matrices and embedding tables, not gains,
    biases, the class embedding or the logit scale.

    Args:
      learning_rate: the peak of the schedule, above 0.
      warmup: steps until the peak; 0 for none. With as many as `steps` or more there is no decay.
      steps: all steps, the warm-up included.
      weight_decay: the decoupled weight decay, multiplied by the learning rate.
      beta2: decay of the second moment; that of the first is 0.9.
      clip_norm: the global norm that gradients are clipped to; None: not clipped.
      eps: added to the root of the second moment.

    Returns:
      The optimiser, for parameters by dotted path as `split_model` returns them.

    >>> import jax.numpy as jnp, numpy as np
    >>> from clipdata_jax.training import adamw
    >>> optimizer = adamw(learning_rate=0.1, warmup=0, steps=10, weight_decay=0.0)
    >>> params = {"scale": jnp.ones(2)}
    >>> updates, _ = optimizer.update({"scale": jnp.array([1.0, -2.0])}, optimizer.init(params), params)
    >>> print(np.asarray(updates["scale"]).round(3))
    [-0.1  0.1]
    """
    rate = functools.partial(learning_rate_at, peak=learning_rate, warmup=warmup, steps=steps)
    optimizer = optax.adamw(rate, b1=0.9, b2=beta2, eps=eps, weight_decay=weight_decay, mask=_is_decayed)
    return optimizer if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _is_decayed(params: dict[str, Array]) -> dict[str, bool]:
    return {name: value.ndim >= 2 for name, value in params.items()}
