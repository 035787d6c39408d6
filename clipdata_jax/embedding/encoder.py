"""Embeds images and captions in batches of one static shape, with rows sharded over the devices."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32, UInt8

from clipdata_jax.models import CLIP
from clipdata_jax.runtime import parallel, threads

# Batches handed to the devices before the first result is fetched; more would only pile up in memory.
_IN_FLIGHT = 2


class Encoder:
    """A model with its parameters on every device of a mesh.

    Every device always runs the same program on `batch_size` rows and no device talks to another, so a row's
    embedding has the same bits on any number of devices.

    Args:
      model: the model.
      batch_size: rows that a device takes at a time.
      mesh: devices along the axis "data".
    """

    def __init__(self, model: CLIP, batch_size: int, mesh: Mesh) -> None:
        structure, state = nnx.split(model)
        self.rows = batch_size * mesh.shape[parallel.AXIS]
        """Rows that all devices take at a time; batches of this size need no padding."""
        self._sharding = NamedSharding(mesh, P(parallel.AXIS))
        self._everywhere = NamedSharding(mesh, P())
        self._state = jax.device_put(state, self._everywhere)

        def sharded(encode: Callable[[CLIP, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
            return jax.jit(
                jax.shard_map(
                    lambda state, rows: encode(nnx.merge(structure, state), rows),
                    mesh=mesh,
                    in_specs=(P(), P(parallel.AXIS)),
                    out_specs=P(parallel.AXIS),
                )
            )

        self._image = sharded(lambda model, pixels: model.encode_image(pixels))
        self._text = sharded(lambda model, ids: model.encode_text(ids))

    def update(self, model: CLIP) -> None:
        """Takes the parameters of another model of the same shape, such as a later step's; nothing is compiled anew."""
        self._state = jax.device_put(nnx.split(model)[1], self._everywhere)

    def images(self, pixels: UInt8[np.ndarray, "n size size 3"]) -> Float32[np.ndarray, "n d"]:
        """Embeds images; returns one unit row per image."""
        return self._batched(self._image, pixels)

    def texts(self, ids: Int32[np.ndarray, "n context"]) -> Float32[np.ndarray, "n d"]:
        """Embeds captions; returns one unit row per caption."""
        return self._batched(self._text, ids)

    def _batched(self, encode: Callable[..., jax.Array], rows: np.ndarray) -> np.ndarray:
        whole = jax.ShapeDtypeStruct((self.rows, *rows.shape[1:]), rows.dtype)
        emb_nd = np.empty((len(rows), jax.eval_shape(encode, self._state, whole).shape[1]), np.float32)

        def encoded(start: int) -> tuple[int, jax.Array]:
            batch = parallel.pad_rows(rows[start : start + self.rows], self.rows)
            return start, encode(self._state, jax.device_put(batch, self._sharding))

        for start, result in threads.in_flight(map(encoded, range(0, len(rows), self.rows)), _IN_FLIGHT):
            target = emb_nd[start:]
            target[: len(result)] = np.asarray(result)[: len(target)]
        return emb_nd
