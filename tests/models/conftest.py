"""What the models' tests share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clipdata_jax.models import CLIP, CLIPConfig


@pytest.fixture(scope="session")
def filled() -> Callable[[CLIPConfig], CLIP]:
    """Makes a model of any random numbers, the same for the same shapes; CLIP's own take seconds to compile."""

    def fill(config: CLIPConfig) -> CLIP:
        structure, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
        rng = np.random.default_rng(0)
        return nnx.merge(
            structure, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), leaf.dtype), state)
        )

    return fill
