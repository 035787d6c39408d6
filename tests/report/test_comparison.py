"""Selections side by side against the same said plainly in NumPy."""

import numpy as np
import pytest

from clipdata_jax.report import comparison, contents, page


def made(rows: int = 900):
    random = np.random.default_rng(0)
    names = ("norm_sim_inf_a", "norm_sim_inf_b", "clip_score")
    scores = {name: random.normal(size=rows).astype(np.float32) for name in names}
    scores["norm_sim_inf_a"][:3], scores["norm_sim_inf_b"][2:5] = np.nan, np.nan
    return scores, random.random(rows) < 0.4, random.random(rows) < 0.2


def test_overlaps_and_drawn_pairs_are_those_of_the_masks():
    scores, own, other = made()
    found = comparison.plan(own, [comparison.Selection("x", other)], scores, pictures=5, seed=3)
    assert [one.pairs for one in found.overlaps] == [own.sum(), other.sum()]
    both = (own & other).sum()
    assert [one.shared for one in found.overlaps] == [(own.sum(), both), (both, other.sum())]
    (one,) = found.differences
    for drawn, mask in ((one.only_here, own & ~other), (one.only_there, other & ~own)):
        assert drawn.pairs == mask.sum() and len(set(drawn.rows)) == 5 and mask[list(drawn.rows)].all()
    assert sorted(found.samples[2].rows) == np.flatnonzero(other).tolist()


def test_nearest_targets_are_counted_and_a_union_is_left_out():
    scores, own, other = made()
    a, b = (np.nan_to_num(scores[f"norm_sim_inf_{name}"], nan=-np.inf) for name in "ab")
    scores["norm_sim_inf_all"] = np.maximum(a, b)
    targets = comparison.plan(own, [comparison.Selection("x", other)], scores, pictures=0).targets
    assert (targets.names, targets.unions) == (("a", "b"), ("all",))
    scored = np.maximum(a, b) > -np.inf
    for counts, mask in zip(targets.counts, (scored, own & scored, other & scored), strict=True):
        assert counts.pairs == ((mask & (a >= b)).sum(), (mask & (b > a)).sum())


def test_words_are_of_the_captions_found():
    samples = [comparison.Sample("x", (1, 2, 3, 4)), comparison.Sample("y", (9,))]
    x, y = comparison.words(samples, {1: 2, 2: 3, 3: 7})
    assert (x.captions, x.median, x.mean) == (3, 3, 4) and x.few == pytest.approx(1 / 3)
    assert y.captions == 0 and np.isnan([y.median, y.mean, y.few]).all()


@pytest.mark.parametrize("rows", [0, 1, 900])
def test_the_section_shows_names_as_text(rows):
    scores, own, other = made()
    scores = {name: values[:rows] for name, values in scores.items()}
    selections = [comparison.Selection("<script>\u202e", other[:rows])]
    found = comparison.plan(own[:rows], selections, scores, pictures=2)
    plan = contents.plan(scores, own[:rows], pictures=2, also=found.shown())
    words = comparison.words(found.samples, {})
    html = page.render(plan, page.About("t"), {}, compared=found, words=words)
    assert "<script" not in html and "&lt;script&gt;[U+202E]" in html and ">nan" not in html
    assert "Compared with" not in page.render(plan, page.About("t"), {})
