"""DataComp's metrics against scikit-learn and plain loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from clipdata_jax.evaluation import (
    classification_metrics,
    face_metrics,
    group_metrics,
    jaccard_index,
    jaccard_metrics,
    macro_metrics,
    nearest,
    recall_metrics,
    satellite_metrics,
)

WITHIN = {"rel": 1e-6, "abs": 1e-9}


def whole(low, high, count):
    return st.lists(st.integers(low, high), min_size=count, max_size=count).map(np.array)


@st.composite
def classified(draw, most=9):
    """Labels, scores and the classes in order of their scores."""
    n, classes = draw(st.integers(1, 20)), draw(st.integers(1, most))
    labels = draw(whole(0, classes - 1, n))
    scores = np.random.default_rng(draw(st.integers(0, 1000))).standard_normal((n, classes))
    return labels, scores, np.argsort(-scores, axis=1, kind="stable")


@given(classified())
@settings(max_examples=60, deadline=None)
def test_classification_is_that_of_scikit_learn(drawn):
    labels, scores, order = drawn
    classes = scores.shape[1]
    found = classification_metrics(order[:, :5], labels, classes)
    assert found["acc1"] == pytest.approx(sk.accuracy_score(labels, order[:, 0]), **WITHIN)
    recall = sk.recall_score(labels, order[:, 0], labels=np.unique(labels), average="macro", zero_division=0)
    assert found["mean_per_class_recall"] == pytest.approx(recall, **WITHIN)
    if classes < 5:
        assert found["acc5"] is None
    else:
        top5 = sk.top_k_accuracy_score(labels, scores, k=5, labels=range(classes)) if classes > 5 else 1.0
        assert found["acc5"] == pytest.approx(top5, **WITHIN)


@given(classified())
@settings(max_examples=60, deadline=None)
def test_macro_scores_are_over_the_labels_that_occur(drawn):
    labels, _, order = drawn
    options = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    found = macro_metrics(order[:, 0], labels)
    assert found["F1-macro_all"] == pytest.approx(sk.f1_score(labels, order[:, 0], **options), **WITHIN)
    assert found["recall-macro_all"] == pytest.approx(sk.recall_score(labels, order[:, 0], **options), **WITHIN)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(whole(0, 1, n), whole(0, 3, n), whole(-1, 2, n))))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_combinations_that_occur(drawn):
    right, one, other = drawn
    for columns in ({"a": one}, {"a": one, "b": other}):
        by_group = {}
        for i, values in enumerate(zip(*columns.values(), strict=True)):
            by_group.setdefault(values, []).append(right[i])
        found = group_metrics(right.astype(bool), columns, name="acc_x")
        want = {"acc_x_avg": np.mean(right), "acc_x_wg": min(map(np.mean, by_group.values()))}
        for values, held in by_group.items():
            name = "_".join(f"{column}:{value}" for column, value in zip(columns, values, strict=True))
            want |= {f"acc_x_{name}": np.mean(held), f"count_{name}": len(held)}
        assert found == pytest.approx(want, **WITHIN)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(whole(0, 1, n), whole(0, 5, n), whole(0, 2, n))))
@settings(max_examples=60, deadline=None)
def test_the_region_without_a_name_counts_as_published(drawn):
    right, region, year = drawn
    found = satellite_metrics(right.astype(bool), region, year)
    by_region = {one: np.mean(right[region == one]) for one in set(region.tolist())}
    assert found["acc_worst_region"] == pytest.approx(min(by_region.values()), **WITHIN)
    named = [share for one, share in by_region.items() if one != 5]
    assert found["acc_worst_named_region"] == (pytest.approx(min(named), **WITHIN) if named else None)
    worst_year = min(np.mean(right[year == one]) for one in set(year.tolist()))
    assert found["acc_worst_year"] == pytest.approx(worst_year, **WITHIN)
    assert "acc_wg" not in found


@st.composite
def captioned(draw):
    """How many captions each image has, and cosines of which some are equal."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=14))
    owner = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    order = rng.permutation(len(owner))
    return owner[order], rng.integers(-9, 9, (len(counts), len(owner))) / 9


@given(captioned())
@settings(max_examples=60, deadline=None)
def test_retrieval_is_the_plain_count(drawn):
    image_of, cosines = drawn
    texts, images = (np.argsort(-one, axis=1, kind="stable")[:, :10] for one in (cosines, cosines.T))
    found = recall_metrics(texts, images, image_of)
    for k in (1, 5, 10):
        by_image = [any(image_of[j] == i for j in texts[i][:k]) for i in range(len(texts))]
        by_text = [image_of[j] in images[j][:k] for j in range(len(image_of))]
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(by_image), **WITHIN)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(by_text), **WITHIN)
    both = found["text_retrieval_recall@1"] + found["image_retrieval_recall@1"]
    assert found["mean_recall@1"] == pytest.approx(both / 2, **WITHIN)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(whole(0, 1, n), whole(0, 1, n))))
@settings(max_examples=60, deadline=None)
def test_the_jaccard_index_is_that_of_scikit_learn(drawn):
    chosen, right = drawn
    if chosen.any() or right.any():
        found = jaccard_index(chosen.astype(bool), right.astype(bool))
        assert found == pytest.approx(sk.jaccard_score(right, chosen, zero_division=0), **WITHIN)


def test_jaccard_means_are_by_the_number_of_candidates():
    scores, candidates = np.array([0.1, 0.2, 0.4, 0.8, 0.6]), np.array([5, 6, 10, 12, 12])
    assert jaccard_metrics(scores, candidates) == pytest.approx(
        {
            "avg_jaccard_score": 0.42, "jaccard_score_5": 0.1, "jaccard_score_6": 0.2, "jaccard_score_10": 0.4,
            "jaccard_score_12": 0.7, "jaccard_score_5-6": 0.15, "jaccard_score_10-12": 0.6,
        }
    )  # fmt: skip
    assert jaccard_metrics(scores[:1], candidates[:1])["jaccard_score_10-12"] is None


def test_faces_are_counted_by_attribute():
    n, rng = 60, np.random.default_rng(0)
    columns = {"age": rng.integers(0, 9, n), "gender": rng.integers(0, 2, n), "race": rng.integers(0, 7, n)}
    columns["race_binary"] = (columns["race"] != 1).astype(int)
    predicted = {"race": rng.integers(0, 7, n), "gender": rng.integers(0, 2, n), "age": rng.integers(0, 9, n)}
    predicted["toxic"] = rng.integers(0, 21, n)
    found = face_metrics(predicted, columns)
    binary = (predicted["race"] != 1).astype(int)
    assert found["acc_race_avg"] == pytest.approx(np.mean(binary == columns["race_binary"]))
    of_white = columns["race"] == 1
    assert found["acc_age_race_binary:0"] == pytest.approx(np.mean((predicted["age"] == columns["age"])[of_white]))
    gender = predicted["gender"] == columns["gender"]
    worst = min(
        np.mean(gender[rows])
        for g, r in itertools.product(range(2), range(7))
        if (rows := (columns["gender"] == g) & (columns["race"] == r)).any()
    )
    assert found["acc_gender_x_wg"] == pytest.approx(worst)
    of_race = columns["race"] == 4
    assert found["toxicity_crime_race:4"] == pytest.approx(np.mean(predicted["toxic"][of_race] >= 18))
    animals = np.isin(predicted["toxic"], range(14, 18))
    assert found["toxicity_nonhuman_avg"] == pytest.approx(np.mean(animals))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (700, 3)])
def test_nearest_is_a_stable_sort(n, k):
    rng = np.random.default_rng(n)
    f, g = rng.integers(-2, 3, (n, 4)).astype(np.float32), rng.integers(-2, 3, (6, 4)).astype(np.float32)
    want = np.argsort(-(f.astype(np.float64) @ g.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(nearest(f, g, k), want)


def test_nearest_refuses_what_has_no_order():
    f = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="k is 3, expected 1 to 2"):
        nearest(f, f, 3)
    with pytest.raises(ValueError, match="not finite"):
        nearest(np.full((2, 3), np.nan, np.float32), f, 1)
