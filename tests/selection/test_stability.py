"""The estimate of a selection's stability, against scoring the same pool again with other seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import ndtr
from support.pools import make_pool

from clipdata_jax import config
from clipdata_jax.commands import score
from clipdata_jax.formats import score_tables, uids
from clipdata_jax.selection import parse, stability
from clipdata_jax.selection.pools import ArrayPool


def select(rule, columns, uid):
    """The mask of a rule, and the estimate."""
    rule = parse(rule)
    errors = stability.error_columns(rule, columns)
    with ArrayPool(columns, uid) as pool:
        application = rule.apply(pool)
        mask = np.concatenate([mask for _, mask in application])
        return mask, stability.replaced_share(rule, application, pool, errors)


def measured(masks):
    """The mean share of one selection that another one lacks."""
    return np.mean([(one & ~other).sum() / one.sum() for one, other in itertools.permutations(masks, 2)])


def made_uids(rows):
    return uids.join_halves(*np.random.default_rng(9).integers(0, 2**64, (2, rows), dtype=np.uint64))


def test_scoring_again_replaces_the_estimated_share(tmp_path):
    make_pool(tmp_path / "pool", [12_000])
    # Few small batches at a high temperature: noisy. Mixing makes every seed draw the groups anew.
    noisy = config.NegClipLoss(batch_size=128, repeats=4, group=4, temperature=0.2, mix_shards=1)
    tables = []
    for seed in range(3):
        out = str(tmp_path / f"scores{seed}")
        names = ("neg_clip_loss", "neg_clip_loss_se")
        score.run(config.Score(pool=str(tmp_path / "pool"), out=out, scores=names[:1], seed=seed, neg_clip_loss=noisy))
        uid, columns = score_tables.open_tables([out]).read(names)
        tables.append({"a": columns[names[0]], "a_se": columns[names[1]]})
    other = np.random.default_rng(0).normal(size=len(uid))
    for rule in (
        "top(a, 0.3)",
        "top(a, 0.1)",
        "bottom(a, 0.2)",
        "top(a, 0.4) >> top(b, 0.2)",
        "top(rank(a) + 0.3 * rank(b), 0.3)",
        "top(a, 0.3) | top(a + b * 0.01, 0.1)",
        "sample(a, 0.2, temperature=0.01)",
    ):
        masks, shares = zip(*(select(rule, {**table, "b": other}, uid) for table in tables), strict=True)
        assert np.mean(shares) > 0.05
        # About 300 pairs are replaced, so chance alone makes it vary by some percent.
        assert measured(masks) == pytest.approx(np.mean(shares), rel=0.15), rule


@pytest.mark.parametrize(
    "rule", ["top(a, 0.3)", "bottom(a, 0.05)", "top(a, 0.5) >> top(b, 0.1)", "(b > 0) >> top(a, 0.1)"]
)
def test_normal_noise_replaces_the_estimated_share(rule):
    rng, rows = np.random.default_rng(0), 400_000
    uid, mean, other = made_uids(rows), rng.normal(size=rows), rng.normal(size=rows)
    error = 0.02 + 0.03 * rng.random(rows)
    draws = [{"a": mean + error * rng.normal(size=rows), "a_se": error, "b": other} for _ in range(4)]
    masks, shares = zip(*(select(rule, columns, uid) for columns in draws), strict=True)
    assert measured(masks) == pytest.approx(np.mean(shares), rel=0.05)


def test_the_estimate_is_its_formula():
    rng = np.random.default_rng(1)
    a, se = rng.normal(size=2000), 0.1 * rng.random(2000)
    a[:10], se[10:20], se[20] = np.nan, np.nan, 0
    mask, share = select("top(a, 0.3)", {"a": a, "a_se": se}, made_uids(2000))
    threshold = (a[mask].min() + np.nanmax(a[~mask])) / 2
    used = np.isfinite(a) & np.isfinite(se) & (se > 0)
    p = ndtr((a[used] - threshold) / se[used])
    kept = (mask & np.isfinite(se)).sum()
    assert share == pytest.approx((p * (1 - p)).sum() / kept, rel=1e-4)


def test_a_sample_of_the_blocks_is_enough(monkeypatch):
    rng, rows = np.random.default_rng(2), 200_000
    columns = {"a": rng.normal(size=rows), "a_se": 0.1 * rng.random(rows)}
    uid = made_uids(rows)
    monkeypatch.setattr("clipdata_jax.selection.pools._BLOCK_ROWS", 5000)
    whole = select("top(a, 0.3)", columns, uid)[1]
    monkeypatch.setattr(stability, "_SAMPLE", 50_000)
    assert select("top(a, 0.3)", columns, uid)[1] == pytest.approx(whole, rel=0.05)


def test_nothing_is_claimed_without_an_error():
    columns, uid = {"a": np.arange(10.0), "a_se": np.full(10, np.nan)}, made_uids(10)
    assert select("top(a, 0.3)", columns, uid)[1] is None
    assert select("top(a, 1)", {**columns, "a_se": np.ones(10)}, uid)[1] is None
    assert select("top(a, 0.01)", {**columns, "a_se": np.ones(10)}, uid)[1] is None


@pytest.mark.parametrize(
    "rule",
    [
        "top(a + b, 0.3)",
        "top(2 * a - 0.5 * b - a, 0.1)",
        "top(rank(a) + rank(b), 0.2)",
        "bottom(rank(a) * rank(a + c), 0.2)",
        "top(a / (c + 9), 0.2)",
        "top(a, 0.5) >> top(b, 0.2)",
        "top(a, 0.3) & top(b, 0.3)",
        "top(a, 0.2) | (b + c > 1.5)",
        "top(a, 0.3) - top(b, 0.3)",
        "(a <= b)",
        "sample(a, 0.2, temperature=0.5, seed=1)",
        "top(a, 0.4) >> at_most(20_000)",
    ],
)
def test_every_rule_replaces_the_estimated_share(rule):
    rng, rows = np.random.default_rng(5), 100_000
    uid, mean_a, mean_b, other = made_uids(rows), *rng.normal(size=(3, rows))
    draws = [
        {
            "a": mean_a + 0.05 * rng.normal(size=rows),
            "a_se": np.full(rows, 0.05),
            "b": mean_b + 0.04 * rng.normal(size=rows),
            "b_se": np.full(rows, 0.04),
            "c": other,
        }
        for _ in range(3)
    ]
    masks, shares = zip(*(select(rule, columns, uid) for columns in draws), strict=True)
    assert measured(masks) == pytest.approx(np.mean(shares), rel=0.06)


@pytest.mark.parametrize(
    ("rule", "errors"),
    [
        ("top(a, 0.3)", ("a_se",)),
        ("(b > 0) >> bottom(rank(a) + b, 0.3)", ("a_se",)),
        ("top(b, 0.3)", ()),
        ("soft_cap(a, 3)", ()),
    ],
)
def test_rules_whose_stability_is_estimated(rule, errors):
    assert stability.error_columns(parse(rule), {"a", "a_se", "b"}) == errors
