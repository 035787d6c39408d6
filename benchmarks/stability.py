"""The stability that a selection states, against scoring the same pool again with other seeds, for each kind of rule.

    python benchmarks/stability.py [--pool METADATA] [--rows 1000000] [--seeds 10] [--batch-size 512] [--group 4]

Without --pool, made pairs of 32 dimensions, ten shards. The scores are two negCLIPLoss of one pass, at two temperatures
(a and b), whose errors come from the same batches, and a NormSim without error (c). `--mix-shards` makes every seed
draw the groups anew. One JSON line a rule: the share of the kept pairs that the selection of one seed states, that
another seed replaces, both as means over the seeds, and the second to the first.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _timing import report, unit_rows

from clipdata_jax import config
from clipdata_jax.commands import score
from clipdata_jax.formats import score_tables
from clipdata_jax.selection import parse, stability
from clipdata_jax.selection.pools import ArrayPool

RULES = {
    "a column": "top(a, 0.3)",
    "a sum, one with an error": "top(a + 0.1 * c, 0.3)",
    "a sum of ranks": "top(rank(a) + rank(c), 0.2)",
    "a sum, both with errors of the same batches": "top(rank(a) + rank(b), 0.3)",
    "two steps": "top(a, 0.3) >> top(c, 0.2)",
    "two steps, both with errors of the same batches": "top(a, 0.4) >> top(b, 0.2)",
    "a union": "top(a, 0.2) | top(c, 0.1)",
    "a draw": "sample(a, 0.2, temperature=0.01)",
}
SHARDS, DIM = 10, 32


def main() -> None:
    """Scores the pool with every seed, then selects by every rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--mix-shards", type=int, default=1)
    parser.add_argument("--temperatures", type=float, nargs=2, default=[0.05, 0.2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pool = options.pool or make_pool(folder / "pool", options.rows)
        settings = config.NegClipLoss(
            batch_size=options.batch_size,
            group=options.group,
            temperature=tuple(options.temperatures),
            mix_shards=options.mix_shards,
        )
        tables = [scored(pool, folder / f"scores{seed}", seed, settings) for seed in range(options.seeds)]
    uid, near = tables[0][0], tables[0][1]["c"]
    for name, text in RULES.items():
        rule, masks, stated = parse(text), [], []
        for _, columns in tables:
            known = {**columns, "c": near}
            with ArrayPool(known, uid) as scores:
                application = rule.apply(scores)
                masks.append(np.concatenate([mask for _, mask in application]))
                share = stability.replaced_share(rule, application, scores, stability.error_columns(rule, known))
            stated.append(float("nan") if share is None else share)
        found = [(one & ~other).sum() / one.sum() for one, other in itertools.permutations(masks, 2)]
        ratio = np.mean(found) / np.mean(stated)
        values = {"stated": np.mean(stated).item(), "measured": np.mean(found).item(), "ratio": ratio.item()}
        report("replaced by another seed", rule=text, of=name, pairs=len(uid), seeds=options.seeds, **values)
    report("processor time", seconds=time.process_time())


def make_pool(folder: Path, rows: int) -> str:
    """Writes made pairs, whose captions have a cosine of about 0.4 with their images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    np.save(folder.parent / "target.npy", unit_rows(1, 50, DIM))
    for shard in range(SHARDS):
        count = rows * (shard + 1) // SHARDS - rows * shard // SHARDS
        images = unit_rows(2 * shard + 2, count, DIM)
        texts = unit_rows(2 * shard + 3, count, DIM, noise_of=images)
        halves = random.integers(0, 2**64, (count, 2), dtype=np.uint64)
        uid = [f"{high:016x}{low:016x}" for high, low in halves.tolist()]
        pq.write_table(pa.table({"uid": uid}), folder / f"{shard:08d}.parquet")
        arrays = {"b32_img": images.astype(np.float16), "b32_txt": texts.astype(np.float16)}
        np.savez(folder / f"{shard:08d}.npz", **arrays)
    return str(folder)


def scored(pool: str, out: Path, seed: int, settings: config.NegClipLoss) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The uids and the columns of one seed; a NormSim to the pool's first images, or a made target, comes with it."""
    target = Path(pool).with_name("target.npy")
    if not target.exists():
        target = out.with_name("target.npy")
        with np.load(sorted(Path(pool).glob("*.npz"))[0]) as file:
            np.save(target, file[next(name for name in file if name.endswith("_img"))][:50])
    score.run(
        config.Score(
            pool=pool,
            out=str(out),
            scores=("neg_clip_loss", "norm_sim"),
            seed=seed,
            neg_clip_loss=settings,
            norm_sim=config.NormSim(target=(f"t={target}",)),
        )
    )
    table = score_tables.open_tables([str(out)])
    own = [name for name in table.columns if name.startswith("neg_clip_loss") and f"{name}_se" in table.columns]
    losses = sorted(own, key=lambda name: (len(name), name))  # t50 before t200
    near = next(name for name in table.columns if name.startswith("norm_sim"))
    uid, columns = table.read([*losses, *(f"{name}_se" for name in losses), near])
    found = {"c": columns[near]}
    for name, column in zip(("a", "b"), losses, strict=True):
        found |= {name: columns[column], f"{name}_se": columns[f"{column}_se"]}
    return uid, found


if __name__ == "__main__":
    main()
