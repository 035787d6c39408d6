"""The image-based presets of the real command, and k-means, against plain statements."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from support import metadata_pools as made
from support.pools import unit_rows

from clipdata_jax.errors import InputError
from clipdata_jax.formats import uids
from clipdata_jax.runtime import parallel
from clipdata_jax.scoring import clustering

DIM, TOPICS = 16, 6


def topics(seed: int, rows: int, among: range = range(TOPICS)) -> np.ndarray:
    """Rows near one of six directions, in turn."""
    random = np.random.default_rng(seed)
    centers = np.linalg.qr(np.random.default_rng(99).normal(size=(DIM, DIM)))[0][:TOPICS]
    emb = centers[[among[i % len(among)] for i in range(rows)]] + 0.3 * unit_rows(random, rows, DIM)
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float16)


def write_pool(folder, pairs, parts=3):
    """Metadata with embeddings beside it; returns uid -> embedding."""
    made.write(folder, pairs, parts)
    emb = topics(0, len(pairs))
    emb[5], emb[9] = 0, np.nan
    emb[3], emb[8], emb[11] = 3 * emb[3], emb[8] / 4, emb[11] * 0.9  # of any norm, as in DataComp
    for part in range(parts + 1):
        here = emb[part::parts] if part < parts else emb[:0]
        np.savez(folder / f"{part:08d}.npz", l14_img=here)
    return {row["uid"]: one for row, one in zip(pairs, emb, strict=True)}


def passes(row):
    """DataComp's caption filter before clustering; fastText's tokens are words here, and ends of lines."""
    text = row["text"]
    if text is None:
        return False
    ends = text.count("\n")
    return len(text) > 5 and len(text.replace("\u00a0", "_").split()) + ends > 1 and made.is_english(text)


def nearest(emb, centroids):
    return (emb.astype(float) @ centroids.astype(float).T).argmax(axis=-1)


@pytest.mark.parametrize(
    ("more", "score"),
    [
        ((), lambda pairs: pairs),
        (("--arch", "l14", "--fraction", "0.3"), lambda pairs: made.fraction(pairs, "l14", 0.3)),
        (
            ("--arch", "b32", "--threshold", "0.25"),
            lambda pairs: [row for row in pairs if made.reaches(row, "b32", 0.25)],
        ),
    ],
)
def test_given_centroids_keep_the_images_of_the_targets_clusters(tmp_path, clipdata, more, score):
    pairs = made.rows()
    emb = write_pool(tmp_path / "metadata", pairs)
    # Of any norm: inner products are compared.
    centroids = (unit_rows(np.random.default_rng(1), 10, DIM) * np.linspace(0.9, 1.1, 10)[:, None]).astype(np.float32)
    target = topics(2, 7, range(2))
    np.save(tmp_path / "centroids.npy", centroids)
    np.save(tmp_path / "target.npy", target)
    preset = "image_based_intersect_clip_score" if more else "image_based"
    arguments = ("filter", "metadata", "--preset", preset, "--target", "target.npy", "--centroids", "centroids.npy")
    done = clipdata(*arguments, *more, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    wanted = set(nearest(target, centroids).tolist())
    want = [
        row["uid"]
        for row in score(pairs)
        if passes(row) and np.any(np.nan_to_num(emb[row["uid"]])) and nearest(emb[row["uid"]], centroids) in wanted
    ]
    kept = uids.to_hex(np.load(tmp_path / "s.npy"))
    assert kept == sorted(want)
    assert 0 < len(kept) < len(pairs)
    assert 0 < len(wanted) < 10
    content = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    assert content["target_clusters"] == len(wanted)
    assert content["without_value"]["l14_img"] == 2
    assert "hardware" in content
    assert f"{len(wanted)} of 10 clusters hold one of 7 target images" in done.stdout


def test_clusters_are_found_and_kept_for_the_next_run(tmp_path, clipdata):
    pairs = [{**row, "uid": f"{i:08x}{row['uid'][8:]}"} for i in range(4) for row in made.rows()]
    emb = write_pool(tmp_path / "metadata", pairs)
    np.save(tmp_path / "target.npy", topics(2, 3, range(1, 2)))
    arguments = ("filter", "metadata", "--preset", "image_based", "--target", "target.npy")
    done = clipdata(*arguments, "--clusters", TOPICS, "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    assert "1 of 6 clusters" in done.stdout
    # The topics are far apart, so each is a cluster.
    directions = topics(3, TOPICS)
    want = [
        row["uid"]
        for row in pairs
        if passes(row) and np.any(np.nan_to_num(emb[row["uid"]])) and nearest(emb[row["uid"]], directions) == 1
    ]
    assert uids.to_hex(np.load(tmp_path / "s.npy")) == sorted(want)
    again = clipdata(*arguments, "--centroids", "s.npy.centroids.npy", "--out", "again.npy")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "s.npy").read_bytes() == (tmp_path / "again.npy").read_bytes()
    few = clipdata(*arguments, "--clusters", 3, "--sample", 60, "--out", "few.npy")
    content = json.loads((tmp_path / "few.npy.manifest.json").read_text())
    assert few.returncode == 0
    assert 3 <= content["clustered"] < 60
    assert content["centroids"]["relative"] == "few.npy.centroids.npy"


def test_k_means_is_the_same_on_any_number_of_devices_and_finds_the_topics(monkeypatch):
    emb = topics(4, 3000)
    found = []
    for devices in (1, 8):
        mesh = parallel.data_mesh(jax.devices()[:devices])
        monkeypatch.setattr(parallel, "local_mesh", lambda mesh=mesh: mesh)
        found.append(clustering.fit(emb, TOPICS, seed=3, steps=20))
        rows = clustering.assign(emb, clustering.place(found[0].centroids))
        np.testing.assert_array_equal(rows, nearest(emb, found[0].centroids))
    np.testing.assert_array_equal(found[0].centroids, found[1].centroids)
    assert found[0].cosines == found[1].cosines
    assert list(found[0].cosines) == sorted(found[0].cosines)
    assert len(found[0].cosines) < 20  # it ends when nothing changes
    np.testing.assert_array_equal(found[0].size, [3000 // TOPICS] * TOPICS)


def test_seeds_are_drawn_by_squared_distance():
    distance = np.array([0.5, 1.0, 1.5, 0.0, 1.0])
    best = (1 - distance / 2).astype(np.float32)
    drawn = [clustering._draw(best, [4], 1, seed)[0] for seed in range(4000)]
    share = np.bincount(drawn, minlength=5) / 4000
    np.testing.assert_allclose(share, [1 / 6, 2 / 6, 3 / 6, 0, 0], atol=0.03)
    assert sorted(clustering._draw(best, [4], 3, 0)) == [0, 1, 2]


def test_many_clusters_are_seeded_in_rounds():
    emb = unit_rows(np.random.default_rng(0), 1200, 8).astype(np.float16)
    found = clustering.fit(np.concatenate([emb, emb]), 600, seed=0, steps=1)
    assert found.centroids.shape == (600, 8)
    assert (found.size > 0).all()
    assert found.size.sum() == 2400
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)
    with pytest.raises(InputError, match="more than the 3 different rows"):
        clustering.fit(np.concatenate([emb[:3]] * 5), 4, seed=0, steps=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--preset image_based --centroids c.npy", "--target is None"),
        ("--preset image_based --target t.npy", "one of the two"),
        ("--preset image_based --target t.npy --centroids c.npy --clusters 3", "one of the two"),
        ("--preset image_based --target t.npy --clusters 1", "--clusters is 1"),
        ("--preset image_based --target t.npy --clusters 100000", "pairs were drawn whose captions pass"),
        ("--preset image_based --target t.npy --centroids c.npy --arch l14", "--arch is 'l14'"),
        ("--preset image_based_intersect_clip_score --target t.npy --centroids c.npy", "--arch is None"),
        ("--preset image_based --target t.npy --centroids c.npy --tag b32", "no embeddings tagged 'b32'"),
        ("--preset image_based --target t.npy --centroids c.pt", "pickles, as torch writes, are not loaded"),
        ("--preset image_based --target c.pt --centroids c.npy", "c.pt: is a pickle, as torch.save writes it, not emb"),
        ("--preset image_based --target t.npy --centroids wide.npy", "float64[3, 20], expected floats of shape (k,"),
        ("--preset image_based --target t.npy --centroids nan.npy", "a centroid is not finite"),
        ("--preset image_based --target wide.npy --centroids c.npy", "the target has dimension 20"),
        ("--preset no_filter --target t.npy", "--target is 't.npy', expected no value"),
    ],
)
def test_bad_input_is_named(tmp_path, clipdata, arguments, words):
    write_pool(tmp_path / "metadata", made.rows()[:30])
    random = np.random.default_rng(0)
    for name, dim in (("t", DIM), ("c", DIM), ("wide", 20)):
        np.save(tmp_path / f"{name}.npy", unit_rows(random, 3, dim))
    np.save(tmp_path / "nan.npy", np.full((3, DIM), np.nan))
    (tmp_path / "c.pt").write_bytes(b"\x80\x04N.")
    done = clipdata("filter", "metadata", *arguments.split(), "--out", "s.npy")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
