"""Draws with repetition, against the procedures as published and against the clocks one by one."""

from __future__ import annotations

import collections
import heapq
import math

import numpy as np
import pytest

from clipdata_jax.errors import InputError
from clipdata_jax.formats import hashing, uids
from clipdata_jax.selection import draws, hard_cap, parse, soft_cap, top


def made_uids(rows, seed=9):
    return uids.join_halves(*np.random.default_rng(seed).integers(0, 2**64, (2, rows), dtype=np.uint64))


def made_words(uid, salt, seed=0):
    return [int(hashing.mix(int.from_bytes(salt, "big"), seed, *map(int, one))) for one in uid]


def log_wait(word, ring):
    bits = int(hashing.scatter(np.uint64(word ^ ring)))
    return math.log(-math.log(((bits >> 12) + 0.5) * 2.0**-52))


def plain_soft_cap(scores, words, number, penalty, batch):
    """All clocks sorted anew for every batch."""
    times = [0] * len(scores)
    clocks = [log_wait(word, 0) - score for score, word in zip(scores, words, strict=True)]
    while sum(times) < number:
        rows = sorted(range(len(scores)), key=lambda i: (clocks[i], words[i]))[: min(batch, number - sum(times))]
        now = clocks[rows[-1]]
        for i in rows:
            times[i] += 1
            clocks[i] = float(np.logaddexp(now, log_wait(words[i], times[i]) - scores[i] + penalty * times[i]))
    return times


def plain_hard_cap(scores, words, number, cap):
    """One ring at a time."""
    times = [0] * len(scores)
    rings = [(log_wait(word, 0) - scores[i], word, i) for i, word in enumerate(words)]
    heapq.heapify(rings)
    for _ in range(number):
        now, word, i = heapq.heappop(rings)
        times[i] += 1
        if times[i] < cap:
            heapq.heappush(rings, (float(np.logaddexp(now, log_wait(word, times[i]) - scores[i])), word, i))
    return times


@pytest.fixture
def _small_steps(monkeypatch):
    """Many refills of the queue on small pools."""
    monkeypatch.setattr(draws, "_LEAST_NEAR", 16)
    monkeypatch.setattr(draws, "_SAMPLE", 8)


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
@pytest.mark.parametrize(
    ("rows", "number", "penalty", "batch"), [(300, 1000, 0.15, 7), (50, 49, 2.0, 50), (40, 400, 0, 40)]
)
def test_soft_cap_is_its_plain_form(rows, number, penalty, batch, spread):
    uid = made_uids(rows)
    scores = np.random.default_rng(1).normal(0, spread, rows)
    rule = soft_cap("a", number, penalty=penalty, batch=batch, seed=3)
    want = plain_soft_cap(scores.tolist(), made_words(uid, b"softcap", 3), number, penalty, batch)
    times = rule.keep({"a": scores}, uid)
    assert times.dtype == np.uint32
    assert times.tolist() == want


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
@pytest.mark.parametrize(("rows", "number", "cap"), [(300, 1000, 15), (50, 49, 1), (40, 400, 10), (40, 399, 10)])
def test_hard_cap_is_its_plain_form(rows, number, cap, spread):
    uid = made_uids(rows)
    scores = np.random.default_rng(1).normal(0, spread, rows)
    times = hard_cap("a", number, cap=cap, seed=3).keep({"a": scores}, uid)
    assert times.tolist() == plain_hard_cap(scores.tolist(), made_words(uid, b"hardcap", 3), number, cap)


def published_soft_cap(rng, scores, number, penalty, batch):
    scores, times = scores.copy(), np.zeros(len(scores), int)
    while times.sum() < number:
        weights = np.exp(scores)
        drawn = rng.choice(len(scores), min(batch, number - times.sum()), replace=False, p=weights / weights.sum())
        scores[drawn] -= penalty
        times[drawn] += 1
    return times


def published_hard_cap(rng, scores, number, cap):
    times = np.zeros(len(scores), int)
    while times.sum() < number:
        weights = np.where(times < cap, np.exp(scores), 0)
        times[rng.choice(len(scores), p=weights / weights.sum())] += 1
    return times


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_draws_have_the_published_distribution(kind):
    rng, uid, scores, seeds = np.random.default_rng(2), made_uids(8), np.linspace(-2, 2, 8), 600
    if kind == "soft":
        ours = [soft_cap("a", 22, penalty=0.4, batch=4, seed=seed).keep({"a": scores}, uid) for seed in range(seeds)]
        theirs = [published_soft_cap(rng, scores, 22, 0.4, 4) for _ in range(seeds)]
    else:
        ours = [hard_cap("a", 12, cap=4, seed=seed).keep({"a": scores}, uid) for seed in range(seeds)]
        theirs = [published_hard_cap(rng, scores, 12, 4) for _ in range(seeds)]
    # Means, spreads and the products of neighbours, each within four standard errors of the difference.
    for statistic in (lambda x: x, lambda x: x**2, lambda x: x * np.roll(x, 1, axis=1)):
        one, other = (statistic(np.array(times, float)) for times in (ours, theirs))
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / seeds)
        assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) <= 4 * error + 1e-9).all()


@pytest.mark.parametrize(
    "rule", ["soft_cap(a, 3000, batch=50)", "hard_cap(a, 3000)", "top(a, 0.5) >> soft_cap(b, 900, batch=9)"]
)
def test_neither_order_nor_blocks_matter(rule, monkeypatch):
    rng, uid, rule = np.random.default_rng(3), made_uids(2000), parse(rule)
    columns = {name: rng.normal(size=2000).astype(np.float32) for name in "ab"}
    columns["b"][:50] = np.nan
    want = np.sort(np.repeat(uid, rule.keep(columns, uid)))
    monkeypatch.setattr("clipdata_jax.selection.pools._BLOCK_ROWS", 300)
    order = rng.permutation(2000)
    got = np.repeat(uid[order], rule.keep({name: values[order] for name, values in columns.items()}, uid[order]))
    np.testing.assert_array_equal(np.sort(got), want)
    assert max(collections.Counter(want.tolist()).values()) > 1


def test_pairs_without_a_score_are_never_drawn():
    uid = made_uids(20)
    a = np.where(np.arange(20) < 10, np.nan, 1.0)
    a[10] = np.inf
    for rule in (soft_cap("a", 90, batch=9), hard_cap("a", 90, cap=10)):
        times, steps = rule.trace({"a": a}, uid)
        assert not times[:11].any()
        assert (times[11:] == 10).all()
        assert (steps[0].seen, steps[0].kept, steps[0].drawn) == (20, 9, 90)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("soft_cap(a, 100, batch=20)", "20 different pairs at a time, but 10 have a score"),
        ("soft_cap(a, 11)", "e.g. batch=1"),
        ("hard_cap(a, 31, cap=3)", "more than 3 times the 10 pairs that have a score; draw at most 30 times"),
        ("soft_cap(a, 5) & top(a, 0.3)", "write it last, after >>"),
        ("hard_cap(a, 5) >> top(a, 0.3)", "write it last, after >>"),
        ("top(a, 0.3) - (top(a, 1) >> hard_cap(a, 5))", "write it last, after >>"),
        ("soft_cap(a, 0)", "the number of draws is 0"),
        ("soft_cap(a, 0.5)", "expected a whole number"),
        ("soft_cap(a, 5, penalty=-1)", "the penalty is -1"),
        ("soft_cap(a, 5, batch=0)", "the batch is 0"),
        ("soft_cap(a, 5, cap=2)", "the options of soft_cap are penalty=, batch=, seed="),
        ("hard_cap(a, 5, cap=0)", "the cap is 0"),
        ("hard_cap(a)", "a number of draws, as in hard_cap(neg_clip_loss, 128_000_000)"),
        ("soft_cap(1, 5)", "expected a column"),
    ],
)
def test_what_can_not_be_drawn(text, words):
    with pytest.raises(InputError) as caught:
        parse(text, ["a"]).keep({"a": np.arange(10.0)}, made_uids(10))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "soft_cap(a, 5, penalty=0.15)",
        "soft_cap(a / 0.1, 5, penalty=1, batch=3, seed=4)",
        "hard_cap(-a, 5, cap=15, seed=1)",
    ],
)
def test_the_text_reads_back(text):
    assert str(parse(text)) == text
    assert parse(str(top("a", 0.5) >> parse(text))) == top("a", 0.5) >> parse(text)
