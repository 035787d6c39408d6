"""Spherical k-means of image embeddings on this process's devices; the same bits on any number of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipdata_jax.errors import InputError
from clipdata_jax.formats import arrays
from clipdata_jax.formats.hashing import mix
from clipdata_jax.runtime import console, parallel
from clipdata_jax.scores import k_means

_BLOCK = 2048  # a device's rows are padded to a multiple of it, so that products have one shape
_ROUNDS = 256  # of seeding, at most about twice as many
_PIECE = 16  # blocks per device that are assigned at a time


@dataclasses.dataclass(frozen=True)
class Clusters:
    """The result of k-means.

    Attributes:
      centroids: shape (k, d), float32, unit rows.
      size: shape (k,), int32: rows of each.
      cosines: the rows' mean cosine with their centroid before each step.
    """

    centroids: np.ndarray
    size: np.ndarray
    cosines: tuple[float, ...]


def fit(emb: np.ndarray, clusters: int, *, seed: int, steps: int) -> Clusters:
    """Clusters unit rows by cosine: k-means++ seeds, then Lloyd's steps until no row changes its cluster.

    The rows are in the devices' memory, in their own dtype, and about 24 k d bytes on each device.

    Args:
      emb: shape (n, d), float16 or float32, unit rows, n >= clusters.
      clusters: k.
      seed: of the seeding.
      steps: largest number of steps.

    Raises:
      InputError: there are fewer different rows than clusters, or a cluster has more rows than can be summed.
    """
    mesh = parallel.local_mesh()
    rows = padded(len(emb), mesh)
    placed = spread(emb, rows, mesh)
    mask = jnp.arange(rows) < len(emb)
    centroids = place(choose_seeds(emb, placed, clusters, seeds_a_round(clusters), seed, mesh))
    before, cosines = None, []
    with console.bar(total=steps, unit="step", name="k-means") as bar:
        for _ in range(steps):
            step = k_means.lloyd_step(placed, mask, centroids, mesh=mesh)
            size = np.asarray(step.size)
            if size.max() > k_means.MOST_ROWS:
                most = f"{k_means.MOST_ROWS:,}"
                raise InputError(f"--clusters is {clusters}, and one has more than {most} rows; use more clusters")
            cosines.append(float(np.asarray(step.score, np.float64).sum() / len(emb)))
            now, centroids = np.asarray(step.cluster), step.centroids
            bar.update(1)
            if before is not None and np.array_equal(before, now):
                break
            before = now
    return Clusters(np.asarray(centroids), size, tuple(cosines))


def read_centroids(path: str, dim: int) -> np.ndarray:
    """Reads centroids from a .npy: float32 (k, dim), of any norm.

    Raises:
      InputError: it can't be read, has another shape, or a centroid is not finite.
    """
    if not path.endswith(".npy"):
        raise InputError(
            f"{path}: expected centroids as a .npy of shape (k, {dim}); pickles, as torch writes, are not loaded: where"
            " you trust the file, numpy.save('centroids.npy', torch.load(PATH, weights_only=False))"
        )
    centroids = arrays.read_array(path, "")
    if centroids.ndim != 2 or not arrays.is_float(centroids.dtype) or not len(centroids) or centroids.shape[1] != dim:
        found = f"{centroids.dtype}{list(centroids.shape)}"
        raise InputError(f"{path}: the centroids are {found}, expected floats of shape (k, {dim})")
    if not np.isfinite(centroids).all():
        raise InputError(f"{path}: a centroid is not finite")
    return centroids.astype(np.float32)


def place(centroids: np.ndarray) -> jax.Array:
    """Puts centroids on every device of this process, for `assign`."""
    placed: jax.Array = jax.device_put(centroids, parallel.replicated())
    return placed


def assign(emb: np.ndarray, centroids: jax.Array) -> np.ndarray:
    """Finds the nearest centroid of each row by inner product: int32 (n,).

    Rows are spread over the devices piece by piece, in few shapes; the next piece is computed while one is fetched.
    """
    mesh = parallel.local_mesh()
    found: list[np.ndarray] = []
    waiting: list[jax.Array] = []
    start, least = 0, _BLOCK * mesh.size
    while start < len(emb):
        doublings = ((len(emb) - start - 1) // least).bit_length()
        side = least * min(_PIECE, 1 << doublings)
        piece = spread(emb[start : start + side], side, mesh)
        waiting.append(k_means.assign_clusters(piece, centroids, mesh=mesh).row)
        if len(waiting) > 1:
            found.append(np.asarray(waiting.pop(0)))
        start += side
    return np.concatenate([np.empty(0, np.int32), *found, *map(np.asarray, waiting)])[: len(emb)]


def spread(rows: np.ndarray, side: int, mesh: jax.sharding.Mesh) -> jax.Array:
    """Pads rows with zeros to `side` rows and spreads them over the devices."""
    sharding = jax.NamedSharding(mesh, jax.P(parallel.AXIS))
    placed: jax.Array = jax.device_put(parallel.pad_rows(rows, side), sharding)
    return placed


def padded(rows: int, mesh: jax.sharding.Mesh) -> int:
    return max(1, -(-rows // (_BLOCK * mesh.size))) * _BLOCK * mesh.size


def seeds_a_round(clusters: int) -> int:
    """The number of initial centroids that are drawn at a time."""
    return max(1, clusters // _ROUNDS)


def choose_seeds(
    emb: np.ndarray, placed: jax.Array, clusters: int, a_round: int, seed: int, mesh: jax.sharding.Mesh
) -> np.ndarray:
    """k rows, each drawn by its squared distance from those drawn before: k-means++.

    Arthur and Vassilvitskii 2007. Up to 256 clusters one by one; more in up to 512 rounds, whose rows are drawn
    independently of each other, as in k-means|| (Bahmani et al. 2012).
    """
    norms = _norms(emb)
    chosen = [int(np.argmin(mix(seed, 0, np.arange(len(emb), dtype=np.uint64))))]
    best = np.full(len(emb), -np.inf, np.float32)
    new = chosen
    with console.bar(total=clusters, unit="seed", name="k-means++") as bar:
        bar.update(1)
        while len(chosen) < clusters:
            # One shape in all rounds; a repeated row changes nothing.
            latest = place(_unit(emb[np.resize(new, a_round)]))
            found = k_means.assign_clusters(placed, latest, mesh=mesh).score
            best = np.maximum(best, np.asarray(found)[: len(emb)] / norms)
            new = _draw(best, chosen, min(a_round, clusters - len(chosen)), seed)
            chosen += new
            bar.update(len(new))
    return _unit(emb[chosen])


def _norms(emb: np.ndarray) -> np.ndarray:
    """The rows' norms: float16 rows are only about unit."""
    blocks = (emb[start : start + _BLOCK].astype(np.float32) for start in range(0, len(emb), _BLOCK))
    return np.concatenate([np.sqrt(np.einsum("nd,nd->n", block, block)) for block in blocks])


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _draw(best: np.ndarray, chosen: list[int], count: int, seed: int) -> list[int]:
    """Draws rows without replacement by 2 - 2 best, the squared distance of unit rows, through hashes."""
    distance = np.maximum(2 - 2 * best.astype(np.float64), 0)
    distance[distance < 1e-5] = 0  # rounding, between rows that are the same
    distance[chosen] = 0
    rows = np.flatnonzero(distance)
    if len(rows) < count:
        raise InputError(
            f"--clusters is more than the {len(chosen) + len(rows):,} different rows of the sample; use fewer clusters"
        )
    uniform = ((mix(seed, len(chosen), rows.astype(np.uint64)) >> np.uint64(11)) + 0.5) / 2.0**53
    # The smallest of exponential variables with these rates: each is the smallest by its share of the sum.
    time = -np.log(uniform) / distance[rows]
    first = np.argpartition(time, count - 1)[:count]
    drawn: list[int] = rows[first[np.argsort(time[first], kind="stable")]].tolist()
    return drawn
