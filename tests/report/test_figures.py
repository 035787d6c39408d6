"""Figures and choices against the same said plainly in NumPy."""

import numpy as np
import pytest

from clipdata_jax.report import choice, column_labels, contents, histogram, quadrants
from clipdata_jax.selection.ranking import Quantiles


def made(rows: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(seed)
    clip = random.normal(0.25, 0.05, rows)
    scores = {
        "neg_clip_loss": clip - 0.3 + random.normal(0, 0.03, rows),
        "clip_score": clip,
        "norm_sim_inf_in1k": np.round(random.normal(0.6, 0.1, rows), 2),  # with ties
        "neg_clip_loss_se": np.abs(random.normal(size=rows)) / 100,
    }
    scores = {name: values.astype(np.float32) for name, values in scores.items()}
    for at, bad in ((3, np.nan), (11, np.inf), (17, -np.inf)):
        scores["norm_sim_inf_in1k"][at] = bad
    return scores, random.random(rows) < 0.3


def test_ranks_are_exact_for_a_small_column():
    values = made(1_000)[0]["norm_sim_inf_in1k"]
    finite = values[np.isfinite(values)]
    ranks = Quantiles.of(values)
    assert (ranks.rows, ranks.nulls) == (997, 3)
    want = [(finite >= value).mean() if np.isfinite(value) else np.nan for value in values]
    np.testing.assert_allclose(ranks.share_at_least(values), want, rtol=1e-12)
    middle = [((finite < v).sum() + (finite <= v).sum()) / 2 / 997 if np.isfinite(v) else np.nan for v in values]
    np.testing.assert_allclose(ranks.middle(values), middle, rtol=1e-12)
    assert ranks.value_at(1) == finite.max()
    assert ranks.value_at(0) == finite.min()


def test_ranks_of_a_large_column_take_bounded_memory():
    values = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    ranks = Quantiles.of(values)
    assert len(ranks.knots) == 65_537
    exact = np.argsort(np.argsort(values)) / len(values)
    np.testing.assert_allclose(ranks.middle(values), exact, atol=2 / 65_536)
    assert ranks.value_at(0.5) == pytest.approx(np.median(values), abs=1e-4)


def test_a_column_of_nulls_has_no_ranks():
    ranks = Quantiles.of(np.full(5, np.nan, np.float32))
    assert ranks.rows == 0
    assert np.isnan(ranks.value_at(0.5))
    assert np.isnan(ranks.middle(np.zeros(3, np.float32))).all()


def test_histogram_counts_every_scored_pair_once():
    scores, kept = made(5_000)
    values = scores["norm_sim_inf_in1k"]
    values[0] = 100.0  # far out: counted in the last bar, not stretching the axis
    counts = histogram.count(values, kept, Quantiles.of(values))
    finite = np.isfinite(values)
    assert counts.kept.sum() == (kept & finite).sum()
    assert counts.dropped.sum() == (~kept & finite).sum()
    assert counts.clipped >= 1
    assert counts.edges[-1] < 2
    inside = (values >= counts.edges[3]) & (values < counts.edges[4])
    assert counts.kept[3] == (inside & kept).sum()


@pytest.mark.parametrize("values", [[], [np.nan], [0.5], [0.5] * 9, [1e-30, 2e-30], [-3e38, 3e38], [1, 2, 3]])
def test_any_column_can_be_drawn(values):
    values = np.array(values, np.float32)
    kept = np.arange(len(values)) % 2 == 0
    counts = histogram.count(values, kept, Quantiles.of(values))
    assert counts.kept.sum() + counts.dropped.sum() == np.isfinite(values).sum()
    drawing = histogram.draw(counts, {"kept": float("nan")})
    assert "nan" not in drawing.kept + drawing.dropped + str(drawing.strip)
    assert drawing.marks == ()


@pytest.mark.parametrize(
    ("low", "high", "want"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-0.31, -0.02, [-0.3, -0.2, -0.1])]
)
def test_ticks_are_round(low, high, want):
    assert histogram.ticks_between(low, high, 5) == pytest.approx(want)


def test_quadrants_count_pairs_and_kept_pairs():
    scores, kept = made(2_000)
    x, y = scores["norm_sim_inf_in1k"], scores["neg_clip_loss"]
    ranks = {name: Quantiles.of(values) for name, values in scores.items()}
    found = quadrants.split(scores, ranks, kept, x="norm_sim_inf_in1k", y="neg_clip_loss")
    assert found is not None
    mx, my = np.sort(x[np.isfinite(x)])[998], np.sort(y)[1000]
    assert found.at == (pytest.approx(mx), pytest.approx(my))
    ok, right, up = np.isfinite(x), x >= mx, y >= my
    masks = [~right & up & ok, right & up & ok, ~right & ~up & ok, right & ~up & ok]
    assert found.pairs.tolist() == [mask.sum() for mask in masks]
    assert found.pairs.sum() == 1_997
    assert found.kept.tolist() == [(mask & kept).sum() for mask in masks]
    assert found.image.startswith("data:image/png;base64,")
    assert len(found.image) < 300_000
    drawn = choice.of_quadrants(found, scores, kept, wanted=6, seed=0)
    for mask, one in zip(masks, drawn):
        assert mask[list(one.rows)].all()
        assert (one.pairs, one.kept) == (mask.sum(), (mask & kept).sum())


def test_bands_hold_pairs_about_the_quantile_in_proportion():
    scores, _ = made(5_000)
    values = scores["clip_score"]
    kept = values > np.quantile(values, 0.795)
    found = choice.bands("clip_score", values, kept, Quantiles.of(values), wanted=6, seed=0)
    assert [band.quantile for band in found] == list(choice.QUANTILES)
    for band in found:
        place = np.array([(values < values[row]).mean() for row in band.drawn.rows])
        assert (np.abs(place - band.quantile) <= 0.0101).all()
        assert len(set(band.drawn.rows)) == 6
    assert kept[list(found[0].drawn.rows)].all()
    assert not kept[list(found[-1].drawn.rows)].any()
    assert 0 < kept[list(found[2].drawn.rows)].sum() < 6  # the cut runs through this band: some of each
    assert found[0].drawn.pairs == pytest.approx(50, abs=1)


def test_the_choice_depends_on_the_seed_alone():
    scores, kept = made(3_000)
    rows = [contents.plan(scores, kept, images=4, seed=seed).scores.keys() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_a_draw_takes_every_row_alike():
    rows = np.arange(100)
    hits = sum(np.bincount(choice.draw(rows, 5, seed=s, salt="x"), minlength=100) for s in range(2_000))
    assert hits.min() > 60
    assert hits.max() < 145
    assert sorted(choice.draw(rows, 1_000, seed=0, salt="x")) == list(range(100))


def test_what_is_short_on_one_side_is_filled_from_the_other():
    kept = np.arange(10) < 1
    drawn = choice.draw_both(lambda part: np.ones(10, bool)[part], kept, 6, seed=0, salt="")
    assert kept[list(drawn.rows)].sum() == 1
    assert len(drawn.rows) == 6
    few = choice.draw_both(lambda part: (np.arange(10) < 3)[part], ~kept, 6, seed=0, salt="")
    assert sorted(few.rows) == [0, 1, 2]


def test_disagreement_is_the_widest_gap_of_ranks():
    scores, _ = made(2_500)
    a, b = scores["clip_score"], scores["neg_clip_loss"]
    found = choice.disagree(a, b, (Quantiles.of(a), Quantiles.of(b)), wanted=5)
    order_a, order_b = np.argsort(np.argsort(a)), np.argsort(np.argsort(b))
    gap = order_a - order_b
    assert gap[list(found.first_higher)].tolist() == np.sort(gap)[::-1][:5].tolist()
    assert gap[list(found.second_higher)].tolist() == np.sort(gap)[:5].tolist()
    assert found.correlation == pytest.approx(np.corrcoef(order_a, order_b)[0, 1], abs=1e-6)
    assert found.widest == pytest.approx((gap.max() / len(gap), -gap.min() / len(gap)), abs=1e-6)


def test_equal_scores_agree():
    a = np.arange(50, dtype=np.float32)
    found = choice.disagree(a, 2 * a, (Quantiles.of(a), Quantiles.of(2 * a)), wanted=5)
    assert (found.first_higher, found.second_higher) == ((), ())
    assert found.correlation == pytest.approx(1)


def test_contents_of_a_pool():
    scores, kept = made(2_000)
    plan = contents.plan(scores, kept, images=3)
    assert (plan.rows, plan.kept, plan.nulls) == (2_000, kept.sum(), 3)
    names = [figures.name for figures in plan.figures]
    assert names == ["clip_score", "neg_clip_loss", "neg_clip_loss_se", "norm_sim_inf_in1k"]
    clip = plan.figures_of("clip_score")
    assert clip.kept.mean == pytest.approx(scores["clip_score"][kept].mean(), rel=1e-5)
    assert clip.dropped.median == pytest.approx(np.median(scores["clip_score"][~kept]))
    assert "neg_clip_loss_se" not in plan.bands
    assert plan.rivals == ("clip_score", "neg_clip_loss")
    row = next(iter(plan.scores))
    value, share = plan.scores[row]["clip_score"]
    assert value == scores["clip_score"][row]
    assert share == pytest.approx((scores["clip_score"] >= value).mean())


def test_without_normsim_the_quadrants_are_clipscore_and_negcliploss():
    scores, kept = made(500)
    del scores["norm_sim_inf_in1k"]
    plan = contents.plan(scores, kept, images=2)
    assert plan.quadrants is not None
    assert (plan.quadrants.x, plan.quadrants.y) == ("clip_score", "neg_clip_loss")
    alone = contents.plan({"clip_score": scores["clip_score"]}, kept, images=2)
    assert alone.quadrants is None
    assert alone.disagreement is None


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"'clip_score' has shape \(3,\), expected \(4,\)"):
        contents.plan({"clip_score": np.zeros(3, np.float32)}, np.zeros(4, bool), images=0)


def test_column_names_for_readers():
    names = ["norm_sim_2_c10", "other_score", "neg_clip_loss_l14_t10_b1024", "norm_sim_inf_in1k", "clip_score"]
    assert column_labels.ordered(names) == [names[4], names[2], names[3], names[0], names[1]]
    labels = [column_labels.label(name) for name in column_labels.ordered([*names, "neg_clip_loss_se"])]
    assert labels == [
        "CLIPScore",
        "negCLIPLoss l14 t10 b1024",
        "negCLIPLoss: standard error",
        "NormSim∞ in1k",
        "NormSim₂ c10",
        "other score",
    ]
    assert column_labels.short_labels(names)["norm_sim_inf_in1k"] == "NormSim∞"
    assert column_labels.short_labels(["norm_sim_2_a", "norm_sim_2_b"])["norm_sim_2_a"] == "₂ a"
    assert column_labels.first_of("norm_sim", names) == "norm_sim_inf_in1k"
    assert column_labels.first_of("norm_sim", names, "top(norm_sim_2_c10, 0.2)") == "norm_sim_2_c10"
