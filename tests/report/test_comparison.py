"""Selections side by side against the same said plainly in NumPy."""

import numpy as np
import pytest

from clipdata_jax.report import comparison, contents, page
from clipdata_jax.report.caption_statistics import Caption, CaptionSample, describe


def made(rows: int = 900):
    random = np.random.default_rng(0)
    names = ("norm_sim_inf_a", "norm_sim_inf_b", "clip_score")
    scores = {name: random.normal(size=rows).astype(np.float32) for name in names}
    scores["norm_sim_inf_a"][:3], scores["norm_sim_inf_b"][2:5] = np.nan, np.nan
    return scores, random.random(rows) < 0.4, random.random(rows) < 0.2


def test_overlaps_and_drawn_pairs_are_those_of_the_masks():
    scores, own, other = made()
    found = comparison.plan(own, [comparison.Selection("x", other)], scores, images=5, seed=3)
    assert [one.pairs for one in found.overlaps] == [own.sum(), other.sum()]
    both = (own & other).sum()
    assert [one.shared for one in found.overlaps] == [(own.sum(), both), (both, other.sum())]
    (one,) = found.differences
    for drawn, mask in ((one.only_here, own & ~other), (one.only_there, other & ~own)):
        assert drawn.pairs == mask.sum()
        assert len(set(drawn.rows)) == 5
        assert mask[list(drawn.rows)].all()
    assert sorted(found.samples[2].rows) == np.flatnonzero(other).tolist()


def test_nearest_targets_are_counted_and_a_union_named_is_left_out():
    scores, own, other = made()
    a, b = (np.nan_to_num(scores[f"norm_sim_inf_{name}"], nan=-np.inf) for name in "ab")
    scores["norm_sim_inf_all"] = np.maximum(a, b)
    others, named = [comparison.Selection("x", other)], {"norm_sim_inf_all", "norm_sim_inf_elsewhere"}
    targets = comparison.plan(own, others, scores, images=0, unions=named).targets
    assert (targets.names, targets.unions) == (("a", "b"), ("all",))
    scored = np.maximum(a, b) > -np.inf
    for counts, mask in zip(targets.counts, (scored, own & scored, other & scored), strict=True):
        assert counts.pairs == ((mask & (a >= b)).sum(), (mask & (b > a)).sum())
    # A target that holds the others is none: only who made the scores knows.
    held = comparison.plan(own, others, scores, images=0).targets
    assert (held.names, held.unions) == (("a", "all", "b"), ())
    del scores["norm_sim_inf_b"]
    assert comparison.plan(own, others, scores, images=0, unions=named).targets is None


def test_lengths_and_languages_are_of_the_captions_found():
    samples = [CaptionSample("x", (1, 2, 3, 4)), CaptionSample("y", (9,)), CaptionSample("z", (3,))]
    found = {1: Caption(2, "en"), 2: Caption(3, "de"), 3: Caption(7, "en")}
    told = describe(samples, found)
    x, y, z = told.facts
    assert (x.captions, x.median, x.mean) == (3, 3, 4)
    assert x.few == pytest.approx(1 / 3)
    assert told.languages == ("en", "de")
    assert z.languages == (1, 0, 0)
    assert x.languages == pytest.approx((2 / 3, 1 / 3, 0))
    assert y.captions == 0
    assert np.isnan([y.median, y.mean, y.few, *y.languages]).all()
    many = {row: Caption(1, f"l{min(row, 7)}") for row in range(9)}
    told = describe([CaptionSample("x", tuple(range(9)))], many)
    assert told.languages == ("l7", "l0", "l1", "l2", "l3", "l4")
    assert told.facts[0].languages[-1] == pytest.approx(2 / 9)
    assert describe(samples, {1: Caption(2)}).languages is None


@pytest.mark.parametrize("rows", [0, 1, 900])
def test_the_section_shows_names_as_text(rows):
    scores, own, other = made()
    scores = {name: values[:rows] for name, values in scores.items()}
    selections = [comparison.Selection("<script>\u202e", other[:rows])]
    found = comparison.plan(own[:rows], selections, scores, images=2)
    plan = contents.plan(scores, own[:rows], images=2, also=found.shown())
    told = describe(found.samples, {})
    html = page.render(plan, page.About("t"), {}, compared=found, captions=told)
    assert "<script" not in html
    assert "&lt;script&gt;[U+202E]" in html
    assert ">nan" not in html
    assert "Compared with" not in page.render(plan, page.About("t"), {})
