"""NormSim of blocks of pictures to a target that is on every device, or sharded where none can hold it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from clipdata_jax.config import NormSim
from clipdata_jax.runtime import parallel

# A copy of a target may take this share of a device's memory; larger ones are sharded over the devices.
_SHARE_OF_DEVICE = 0.25

_ROWS = 65_536  # of a target that are summed up at a time

# A block of pictures on one device, and p -> scores, and the nearest target rows or None where nobody asks
Scorer = Callable[..., tuple[Any, Any]]


def norm_sim_scorer(target: Float[np.ndarray, "n d"], settings: NormSim) -> Scorer:
    """What scores pictures by one target.

    Args:
      target: the target's embeddings.
      settings: whether cosines are signed, and whether the nearest row is asked for.
    """
    import jax
    import jax.numpy as jnp

    from clipdata_jax import scores

    @functools.cache
    def moment() -> np.ndarray:
        total = np.zeros((target.shape[1],) * 2, np.float32)
        for start in range(0, len(target), _ROWS):
            total += scores.second_moment(jnp.asarray(target[start : start + _ROWS]))
        return total

    whole = None if _must_shard(target) else {one: jax.device_put(target, one) for one in jax.local_devices()}
    sharded = functools.cache(functools.partial(_sharded, target))

    def score(images: Any, *, p: float) -> tuple[Any, Any]:
        device = next(iter(images.devices()))
        if p == 2:
            return scores.norm_sim_moment(images, jax.device_put(moment(), device)), None
        signed = settings.signed and p == math.inf
        if settings.nearest and p == math.inf:
            if whole is not None:
                return scores.nearest_target(images, whole[device], signed=signed)
            found = scores.nearest_target_sharded(
                images, sharded(p), mesh=parallel.local_mesh(), signed=signed
            )
            return found.score, np.minimum(np.asarray(found.row), len(target) - 1)  # the last may be repeated
        if whole is not None:
            return scores.norm_sim(images, whole[device], p=p, signed=signed), None
        return scores.norm_sim_sharded(
            images, sharded(p), mesh=parallel.local_mesh(), p=p, signed=signed
        ), None

    return score


def norm_of_union(norms: Sequence[Float32[np.ndarray, " b"]], p: float) -> Float32[np.ndarray, " b"]:
    """NormSim to several targets taken as one, from NormSim to each: the p-norm of the p-norms.

        ||(a; b)||_p = || (||a||_p, ||b||_p) ||_p

    Args:
      norms: of each target, shape (b,).
      p: the norm, at least 1, or inf. (With signed cosines, p = inf, the largest is signed too.)
    """
    stacked = np.stack(norms)
    most = stacked.max(axis=0)
    if p == math.inf:
        return most
    scale = np.where(most > 0, most, 1)  # |x|^30 would underflow
    return (scale * np.sum((stacked / scale) ** p, axis=0, dtype=np.float64) ** (1 / p)).astype(np.float32)


def _must_shard(target: np.ndarray) -> bool:
    """Whether a copy of the target is too much for a device, and there are several to share it."""
    import jax

    devices = jax.local_devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    return len(devices) > 1 and memory is not None and target.nbytes > _SHARE_OF_DEVICE * memory


def _sharded(target: np.ndarray, p: float) -> Any:
    """The target over this process's devices; what is added to divide evenly changes no norm."""
    import jax

    mesh = parallel.local_mesh()
    missing = -len(target) % mesh.size
    added = np.repeat(target[-1:] if p == math.inf else np.zeros_like(target[:1]), missing, axis=0)
    padded = np.concatenate([target, added])
    return jax.device_put(padded, jax.NamedSharding(mesh, jax.P(parallel.AXIS)))
