"""Scores and selections of a drawn pool are those that earlier versions gave."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pools import unit_rows

pytestmark = pytest.mark.optimized

SMALL = ("--batch-size", 40, "--repeats", 3, "--group", 2)
RULES = {
    "two_steps": "top(neg_clip_loss, 0.5) >> top(norm_sim_inf_tt, 0.2)",
    "drawn": "sample(neg_clip_loss, 0.3, temperature=0.1, seed=3)"
    " | top(rank(clip_score) + 0.5 * rank(norm_sim_2_tt), 0.1)",
}
COMMANDS = {
    "group": (*SMALL, "--target", "tt=tt.npy", "t2=t2.npy", "--p", "inf", 2, 3, "--nearest", "--union", "both"),
    "shard": (*SMALL, "--division", "shard", "--seed", 5),
    "mixed": [
        "--batch-size",
        "40",
        "80",
        "--temperature",
        "0.01",
        "0.07",
        "--repeats",
        "12",
        "--group",
        "4",
        "--mix-shards",
        "2",
    ],
}


def make_inputs(folder: Path) -> None:
    """250 pairs in three shards, and two sets of target images."""
    random = np.random.default_rng(20240519)
    (folder / "pool").mkdir()
    for index, rows in enumerate([90, 30, 130]):
        uid = [hashlib.sha256(f"pool/{index}/{row}".encode()).hexdigest()[:32] for row in range(rows)]
        image = unit_rows(random, rows, 32)
        text = image + unit_rows(random, rows, 32)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        pq.write_table(pa.table({"uid": uid}), folder / f"pool/{index:08d}.parquet")
        arrays = {"b32_img": image.astype(np.float16), "b32_txt": text.astype(np.float16)}
        np.savez(folder / f"pool/{index:08d}.npz", **arrays)
    for name, rows in (("tt", 12), ("t2", 7)):
        np.save(folder / f"{name}.npy", unit_rows(random, rows, 32).astype(np.float16))


@pytest.fixture
def recorded(golden: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    make_inputs(tmp_path)
    with np.load(golden / "outputs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_scores(clipdata, tmp_path, recorded, name):
    done = clipdata("score", "pool", "--out", "scores", *COMMANDS[name])
    assert done.returncode == 0, done.stderr
    parts = [pq.read_table(path) for path in sorted((tmp_path / "scores").glob("*.parquet"))]
    found = pa.concat_tables(parts)
    columns = [column for column in found.column_names if not column.startswith("uid_")]
    assert {f"{name}/{column}" for column in columns} == {key for key in recorded if key.startswith(f"{name}/")}
    for column in columns:
        # The same machine gives the same bits; another adds up in another order.
        np.testing.assert_allclose(
            found[column].to_numpy(), recorded[f"{name}/{column}"], rtol=2e-6, atol=2e-6, err_msg=column
        )


@pytest.mark.parametrize("name", list(RULES))
def test_selections(clipdata, tmp_path, recorded, name):
    pools = [pq.read_table(path) for path in sorted((tmp_path / "pool").glob("*.parquet"))]
    uid = [bytes.fromhex(text) for text in pa.concat_tables(pools)["uid"].to_pylist()]
    table = {
        "uid_hi": np.array([int.from_bytes(one[:8], "big") for one in uid], np.uint64),
        "uid_lo": np.array([int.from_bytes(one[8:], "big") for one in uid], np.uint64),
        **{key.partition("/")[2]: values for key, values in recorded.items() if key.startswith("group/")},
    }
    (tmp_path / "scores").mkdir()
    pq.write_table(pa.table(table), tmp_path / "scores/0.parquet")
    done = clipdata("select", "scores", "--rule", RULES[name], "--out", "subset.npy")
    assert done.returncode == 0, done.stderr
    subset = np.load(tmp_path / "subset.npy")
    np.testing.assert_array_equal(np.stack([subset["f0"], subset["f1"]], axis=1), recorded[f"select/{name}"])
