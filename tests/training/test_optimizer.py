"""AdamW's schedule, decay and clipping against plain float64 formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdata_jax.training import adamw


def test_matrices_decay_and_nothing_else_does():
    params = {"fc.kernel": jnp.ones((2, 2)), "fc.bias": jnp.ones(2), "logit_scale": jnp.ones(())}
    optimizer = adamw(learning_rate=0.1, warmup=0, steps=10, weight_decay=0.5)
    zero = {name: jnp.zeros_like(value) for name, value in params.items()}
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for name, want in {"fc.kernel": -0.05, "fc.bias": 0, "logit_scale": 0}.items():
        np.testing.assert_allclose(updates[name], np.full_like(updates[name], want), rtol=1e-6)


def schedule_float64(peak, warmup, steps):
    rising = [peak * (step + 1) / warmup for step in range(min(warmup, steps))]
    left = steps - warmup
    return [*rising, *(0.5 * (1 + np.cos(np.pi * step / left)) * peak for step in range(left))]


@pytest.mark.parametrize(("warmup", "steps"), [(4, 20), (0, 5), (1, 3), (9, 6)])
def test_learning_rate_is_the_schedule(warmup, steps):
    optimizer = adamw(learning_rate=0.1, warmup=warmup, steps=steps, weight_decay=0.0)
    params = {"gain": jnp.zeros(())}

    def step(state, _):
        # Adam's update by a constant gradient far above eps is the learning rate.
        updates, state = optimizer.update({"gain": jnp.float32(1e6)}, state, params)
        return state, -updates["gain"]

    rates = jax.lax.scan(step, optimizer.init(params), length=steps)[1]
    np.testing.assert_allclose(rates, schedule_float64(0.1, warmup, steps), rtol=2e-5, atol=1e-8)


def test_a_second_step_is_adamws_formula_with_and_without_clipping():
    gradients, start = [np.array([[3.0, -4.0]]), np.array([[0.3, 0.1]])], np.array([[0.5, -2.0]])
    for clip_norm in (None, 1.0):
        optimizer = adamw(
            learning_rate=0.01, warmup=2, steps=9, weight_decay=0.2, beta2=0.95, clip_norm=clip_norm, eps=1e-3
        )
        params = {"kernel": jnp.asarray(start, jnp.float32)}
        state, want, m, v = optimizer.init(params), start, 0.0, 0.0
        for step, gradient in enumerate(gradients, start=1):
            updates, state = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
            params = {"kernel": params["kernel"] + updates["kernel"]}
            if clip_norm is not None:
                gradient = gradient * min(1, clip_norm / np.linalg.norm(gradient))
            m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
            root = np.sqrt(v / (1 - 0.95**step)) + 1e-3
            want = want - 0.01 * step / 2 * (m / (1 - 0.9**step) / root + 0.2 * want)
        np.testing.assert_allclose(params["kernel"], want, rtol=1e-5)
