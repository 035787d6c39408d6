"""Whether units differ by more than chance: in figures drawn by chance, and through the real `clipdata score`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.pools import edit_npz, make_pool, unit_rows

from clipdata_jax.scoring.unit_differences import difference, unit_moments


def columns_of(random, rows, *, shift=0.0, error=0.01):
    sums = random.normal(shift, 1, size=(2, rows)).astype(np.float32)
    return {"s_se": np.full(rows, error, np.float32), "s_log_sum_text": sums[0], "s_log_sum_image": sums[1]}


def test_moments_are_those_of_the_rows_that_have_a_score_and_an_error():
    columns = columns_of(np.random.default_rng(0), 50)
    columns["s_se"][3] = np.nan
    scored = np.arange(50) != 7
    sums = np.delete(columns["s_log_sum_text"].astype(float) + columns["s_log_sum_image"], [3, 7])
    found = unit_moments(columns, "s", scored)
    assert found["rows"] == 48
    np.testing.assert_allclose(
        [found[name] for name in ("mean", "variance", "noise")], [sums.mean(), sums.var(ddof=1), 0.01], rtol=1e-6
    )
    assert unit_moments({**columns, "s_se": np.full(50, np.nan, np.float32)}, "s", scored) == {}


def test_chance_is_hardly_ever_taken_for_a_difference_and_a_shift_always():
    random, t, found = np.random.default_rng(0), 0.1, []
    for shift in (0.0, 3.0):
        pools = [
            [unit_moments(columns_of(random, 200, shift=shift * (i % 2)), "s", np.ones(200, bool)) for i in range(6)]
            for _ in range(200)
        ]
        found.append([difference(units, t) for units in pools])
    assert sum(one is not None for one in found[0]) <= 2
    # Means of 0 and 6 nats in turn, of which a score has t / 2.
    spread = np.std([0, 6] * 3, ddof=1) * t / 2
    np.testing.assert_allclose([one.spread for one in found[1]], spread, rtol=0.1)
    assert difference([{}, *[{"rows": 9, "mean": 0.0, "variance": 1.0, "noise": 1.0}]], t) is None


@pytest.mark.parametrize("topical", [False, True])
def test_score_says_so_where_shards_are_of_one_topic_each(tmp_path, clipdata, topical):
    make_pool(tmp_path / "pool", [64] * 4)
    if topical:
        random = np.random.default_rng(1)
        for number in range(4):  # more alike from shard to shard
            middle = unit_rows(random, 1, 32)
            rows = middle * (number + 1) + unit_rows(random, 64, 32)
            rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
            edit_npz(tmp_path / "pool" / f"{number:08d}.npz", b32_img=rows, b32_txt=rows)
    flags = ("--scores", "neg_clip_loss", "--temperature", 0.1, "--batch-size", 16, "--group", 4, "--repeats", 8)
    done = clipdata("score", "pool", "--out", "scores", *flags)
    assert done.returncode == 0, done.stderr
    assert ("Shards differ by more than chance" in done.stdout) == topical
    assert ("unit_difference" in json.loads((tmp_path / "scores" / "_manifest.json").read_text())) == topical
    if topical:
        assert "--mix-shards" in done.stdout
        mixed = clipdata("score", "pool", "--out", "mixed", *flags, "--mix-shards", 4)
        assert "Shards differ" not in mixed.stdout
        errors = [pq.read_table(tmp_path / name)["neg_clip_loss_se"].to_numpy() for name in ("scores", "mixed")]
        assert errors[1].mean() > errors[0].mean()
