"""Zero-shot and retrieval figures against plain float64 loops."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from clipdata_jax.evaluation import accuracy, class_ranks, recall, retrieval_ranks, zero_shot_weights


def unit_rows(seed, *shape):
    rows = np.random.default_rng(seed).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_weights_are_the_normalised_mean_of_normalised_prompts():
    text_emb = np.random.default_rng(0).standard_normal((3, 4, 8))
    want = []
    for prompts in text_emb:
        mean = np.mean([row / np.linalg.norm(row) for row in prompts], axis=0)
        want.append(mean / np.linalg.norm(mean))
    got = zero_shot_weights(text_emb.astype(np.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (300, 7), (1500, 5)])
def test_accuracy_is_the_plain_count(n, classes):
    labels = np.random.default_rng(1).integers(0, classes - 1, n)  # the last class has no image
    weights = unit_rows(2, classes, 16)
    image_emb = unit_rows(3, n, 16) + weights[labels]
    right1, right5, by_class = 0, 0, {}
    for emb, label in zip(image_emb, labels, strict=True):
        first = sorted(range(classes), key=lambda c: -(weights[c] @ emb))
        right1 += first[0] == label
        right5 += label in first[:5]
        by_class.setdefault(label, []).append(first[0] == label)
    got = accuracy(image_emb.astype(np.float32), weights.astype(np.float32), labels)
    np.testing.assert_allclose(got.top1, right1 / n)
    np.testing.assert_allclose(got.mean_per_class, np.mean([np.mean(found) for found in by_class.values()]))
    if classes > 5:
        np.testing.assert_allclose(got.top5, right5 / n)
    else:
        assert got.top5 is None


def test_a_model_that_knows_nothing_gets_nothing():
    same = np.ones((10, 4), np.float32) / 2
    assert accuracy(same, same[:8], np.arange(10) % 8).top1 == 0
    ranks = retrieval_ranks(same, same, np.arange(10))
    assert set(ranks.image_to_text.tolist()) == set(ranks.text_to_image.tolist()) == {9}
    nan = np.full((2, 4), np.nan, np.float32)
    assert class_ranks(nan, same[:3], np.array([0, 1])).tolist() == [2, 2]


@pytest.mark.usefixtures("types_unchecked")
def test_labels_out_of_range_and_shapes_that_differ_are_named():
    emb = np.ones((2, 4), np.float32)
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"labels are .*, expected at least one, each from 0 to 2"):
            accuracy(emb, np.ones((3, 4), np.float32), np.array(labels))
    with pytest.raises(ValueError, match=r"images \(2, 4\), weights \(3, 5\)"):
        class_ranks(emb, jnp.ones((3, 5)), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"images \(2, 4\), texts \(3, 4\), of \(2,\)"):
        retrieval_ranks(emb, jnp.ones((3, 4)), jnp.zeros(2, int))


def retrieval_plainly(f, g, image_of, k):
    """Sorted lists, float64: the shares of images and of captions that find an answer among k."""
    images = [any(image_of[j] == i for j in np.argsort(-(g @ f[i]), kind="stable")[:k]) for i in range(len(f))]
    captions = [image_of[j] in np.argsort(-(f @ g[j]), kind="stable")[:k] for j in range(len(g))]
    return np.mean(images), np.mean(captions)


@pytest.mark.parametrize(("n", "captions"), [(7, 1), (300, 1), (120, 5)])
def test_retrieval_is_the_plain_count_with_several_captions_a_image(n, captions):
    image_of = np.random.default_rng(0).permutation(np.repeat(np.arange(n), captions))
    f = unit_rows(1, n, 12)
    g = f[image_of] + 0.9 * unit_rows(2, n * captions, 12)
    ranks = retrieval_ranks(f.astype(np.float32), g.astype(np.float32), image_of)
    for k in (1, 5, 10):
        want = retrieval_plainly(f, g, image_of, k)
        for got, share, candidates in zip(ranks[:2], want, (n * captions, n), strict=True):
            if candidates > k:
                np.testing.assert_allclose(recall(got, candidates)[f"r{k}"], share)
            else:
                assert recall(got, candidates)[f"r{k}"] is None


def test_captions_of_the_same_text_are_right_and_ties_are_counted():
    """Of six captions, 0 and 3 are one text, of images 0 and 1; 5 is embedded as 1 is, by its own text."""
    f = unit_rows(1, 3, 6)
    g = unit_rows(2, 6, 6)
    g[3], g[5] = g[0], g[1]
    image_of, text_of = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 0, 3, 4])
    got = retrieval_ranks(f.astype(np.float32), g.astype(np.float32), image_of, text_of)
    cosines = f @ g.T
    for i in range(3):
        own = np.isin(text_of, text_of[image_of == i])
        best = cosines[i, own].max()
        wrong = cosines[i, ~own]
        assert got.image_to_text[i] == np.sum(wrong > best - 1e-6)
        assert got.image_ties[i] == np.any(np.abs(wrong - best) < 1e-6)
    for j in range(6):
        own = np.isin(np.arange(3), image_of[text_of == text_of[j]])
        assert got.text_to_image[j] == np.sum(cosines[~own, j] > cosines[own, j].max())
    assert not got.text_ties.any()
    alone = retrieval_ranks(f.astype(np.float32), g.astype(np.float32), image_of)
    assert alone.text_to_image[0] >= got.text_to_image[0]
    same = np.ones((4, 3), np.float32) / np.sqrt(np.float32(3))
    tied = retrieval_ranks(same, same, np.arange(4), np.array([0, 0, 1, 2]))
    assert tied.image_to_text.tolist() == [2, 2, 3, 3]
    assert tied.text_to_image.tolist() == [2, 2, 3, 3]
    assert tied.image_ties.all()
    assert tied.text_ties.all()


def test_recall_needs_a_query():
    with pytest.raises(ValueError, match="ranks is empty"):
        recall(np.empty(0, int), 5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_kernels_lower_for_other_platforms(platform):
    f, g, of = jnp.zeros((600, 8)), jnp.zeros((700, 8)), jnp.zeros(700, jnp.int32)
    for kernel, arguments in (
        (retrieval_ranks, (f, g, of)),
        (class_ranks, (g, f, of)),
        (zero_shot_weights, (jnp.zeros((5, 3, 8)),)),
    ):
        assert jax.export.export(kernel, platforms=[platform])(*arguments).platforms == (platform,)


def test_no_table_of_all_pairs_is_kept():
    f, g, of = jnp.zeros((20_000, 8)), jnp.zeros((20_000, 8)), jnp.zeros(20_000, jnp.int32)
    memory = retrieval_ranks.lower(f, g, of).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20_000 * 20_000 * 4 / 10
