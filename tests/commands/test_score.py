"""The real `clipdata score` on made and real pools."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import fsspec
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pools import cut_short, edit_npz, make_pool, unit_rows

from clipdata_jax.errors import InputError
from clipdata_jax.formats import embedding_shards, score_tables, uids
from clipdata_jax.runs import profiling
from clipdata_jax.scoring import groups

pytestmark = pytest.mark.optimized

SMALL = ("--batch-size", 40, "--repeats", 3, "--group", 2)


def read(folder: Path, *names: str) -> dict[str, np.ndarray]:
    return score_tables.open_tables([str(folder)]).read(names)[1]


def log_sum(values: np.ndarray) -> float:
    return float(values.max() + np.log(np.exp(values - values.max()).sum()))


def expected_neg_clip_loss(made: dict[str, np.ndarray], units: list[int], t: float, good: np.ndarray) -> np.ndarray:
    """The score of every row by the formula, over the divisions that the plan makes of it."""
    f, g, uid = made["img"].astype(float), made["txt"].astype(float), uids.from_hex(list(made["uid"]))
    want, start = np.zeros(len(f)), 0
    for rows in units:
        for group in groups.plan_groups(rows, batch_sizes=[40], group=2):
            at = start + group.start + np.arange(group.rows)
            slots = groups.slots_of_rows(uid[at], group, 0)
            (dealt,) = groups.deal_cells(group, repeats=3, seed=0, name=start + group.start)
            for batch_of_cell in dealt:
                batch = batch_of_cell[slots // group.slots]
                for i, row in enumerate(at):
                    rest = at[(batch == batch[i]) & good[at]]
                    sums = log_sum(f[row] @ g[rest].T / t) + log_sum(f[rest] @ g[row] / t)
                    want[row] += (f[row] @ g[row] - t / 2 * sums) / len(dealt)
        start += rows
    return want


@pytest.fixture
def pool(tmp_path):
    made = make_pool(tmp_path / "pool", [90, 30, 130])
    target = unit_rows(np.random.default_rng(5), 12, 32).astype(np.float16)
    np.save(tmp_path / "target.npy", target)
    return {**made, "target": target.astype(float)}


def test_every_column_is_its_formula(tmp_path, pool, clipdata):
    done = clipdata("score", "pool", "--out", "out", *SMALL, "--target", "tt=target.npy", "--p", "inf", 2, 3)
    assert done.returncode == 0, done.stderr
    assert "Scored 250 pairs" in done.stdout
    table = score_tables.open_tables([str(tmp_path / "out")])
    assert table.parts == ("00000000", "00000001", "00000002")
    assert table.rows == (90, 30, 130)
    uid, found = table.read(list(table.columns))
    np.testing.assert_array_equal(uids.to_hex(uid), pool["uid"])
    f, g = pool["img"].astype(float), pool["txt"].astype(float)
    cos = np.abs(f @ pool["target"].T)
    np.testing.assert_allclose(found["clip_score"], (f * g).sum(axis=1), atol=1e-6)
    np.testing.assert_allclose(found["norm_sim_inf_tt"], cos.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["norm_sim_2_tt"], (cos**2).sum(axis=1) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["norm_sim_3_tt"], (cos**3).sum(axis=1) ** (1 / 3), rtol=1e-5)
    # Shards of 90, 30 + 130 rows: a group takes 80, so the second and third make one unit.
    want = expected_neg_clip_loss(pool, [90, 160], 0.01, np.ones(250, bool))
    np.testing.assert_allclose(found["neg_clip_loss"], want, atol=5e-6)
    sums = found["neg_clip_loss_log_sum_text"] + found["neg_clip_loss_log_sum_image"]
    np.testing.assert_allclose(found["clip_score"] - 0.005 * sums, found["neg_clip_loss"], atol=5e-6)
    whole = pq.read_table(tmp_path / "out")  # as pandas.read_parquet does: the folder's records are passed over
    np.testing.assert_array_equal(whole["norm_sim_inf_tt"].to_numpy(), found["norm_sim_inf_tt"])
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["rows"] == 250
    assert manifest["temperature"] == 0.01
    assert len(manifest["pool"]) == 6
    assert all("digest" in entry for entry in manifest["pool"])


def test_the_same_bytes_on_any_number_of_devices_and_workers(tmp_path, pool, clipdata):
    for name, devices in (("one", 1), ("two", 2), ("eight", 8)):
        assert clipdata("score", "pool", "--out", name, *SMALL, devices=devices).returncode == 0
    for worker in ("0/2", "1/2"):
        assert clipdata("score", "pool", "--out", "dealt", *SMALL, "--worker", worker).returncode == 0
    first = clipdata("score", "pool", "--out", "dealt", *SMALL)
    assert first.returncode == 0
    assert first.stdout == "Already complete: dealt\n"
    for other in ("two", "eight", "dealt"):
        for path in [*sorted((tmp_path / "one").glob("*.parquet")), tmp_path / "one" / "_manifest.json"]:
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes(), (other, path.name)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, pool, clipdata):
    assert clipdata("score", "pool", "--out", "whole", *SMALL).returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "_manifest.json").unlink()
    (tmp_path / "cut" / "_receipts" / "unit-00001.json").unlink()
    (tmp_path / "cut" / "00000002.parquet").unlink()
    unfinished = clipdata("select", "cut", "--rule", "top(clip_score, 0.5)", "--out", "s.npy")
    assert unfinished.returncode == 2
    assert "isn't finished" in unfinished.stderr
    kept = (tmp_path / "cut" / "00000000.parquet").stat().st_mtime_ns
    assert clipdata("score", "pool", "--out", "cut", *SMALL).returncode == 0
    assert (tmp_path / "cut" / "00000000.parquet").stat().st_mtime_ns == kept
    for path in (tmp_path / "whole").glob("*.*"):
        if path.name != "_run.jsonl":
            assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_every_unit_has_a_line_of_times_and_a_trace_changes_nothing(tmp_path, pool, clipdata):
    flags = ("--batch-size", 20, "--group", 1)  # a unit is a shard
    done = clipdata("score", "pool", "--out", "out", *flags, "--profile", "trace")
    assert done.returncode == 0, done.stderr
    assert "the trace of 1 step is in trace" in done.stderr
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    lines = [json.loads(line) for line in (tmp_path / "out/_run.jsonl").read_text().splitlines()]
    assert [(line["unit"], line["process"], line["rows"]) for line in lines] == [
        ("unit-00000", 0, 90),
        ("unit-00001", 0, 30),
        ("unit-00002", 0, 130),
    ]
    for line in lines:
        assert all(line[f"{name}_seconds"] >= 0 for name in ("read", "wait", "compute", "write"))
        assert line["rows_per_second"] > 0
        assert line["resident_bytes"] > 1e6
    assert clipdata("score", "pool", "--out", "out", *flags).returncode == 0  # the same run, traced or not
    with pytest.raises(InputError, match="--profile memory://trace: is not local"):
        profiling.Profiler("memory://trace", steps=1)


def test_a_mended_or_changed_input_is_scored_again(tmp_path, pool, clipdata):
    good = (tmp_path / "pool" / "00000001.npz").read_bytes()
    cut_short(tmp_path / "pool")
    flags = ("score", "pool", "--out", "out", "--batch-size", 20, "--group", 1)  # a unit is a shard
    assert clipdata(*flags).returncode == 2
    assert (tmp_path / "out" / "00000000.parquet").exists()
    assert clipdata(*flags, "--on-bad", "skip").returncode == 0
    assert np.isnan(read(tmp_path / "out", "clip_score")["clip_score"]).sum() == 30
    (tmp_path / "pool" / "00000001.npz").write_bytes(good)
    kept = (tmp_path / "out" / "00000000.parquet").stat().st_mtime_ns
    assert clipdata(*flags).returncode == 0
    assert np.isfinite(read(tmp_path / "out", "clip_score")["clip_score"]).all()
    assert (tmp_path / "out" / "00000000.parquet").stat().st_mtime_ns == kept
    before = read(tmp_path / "out", "clip_score")["clip_score"]
    edit_npz(tmp_path / "pool" / "00000002.npz", b32_txt=pool["img"][120:])  # of the same size
    assert clipdata(*flags).returncode == 0
    after = read(tmp_path / "out", "clip_score")["clip_score"]
    np.testing.assert_array_equal(after[:120], before[:120])
    np.testing.assert_allclose(after[120:], 1, atol=2e-3)


def test_a_part_that_is_damaged_resized_or_missing_comes_back_as_the_message_says(tmp_path, pool, clipdata):
    flags = ("score", "pool", "--out", "out", "--batch-size", 20, "--group", 1)
    assert clipdata(*flags).returncode == 0
    part = tmp_path / "out" / "00000001.parquet"
    good, names = part.read_bytes(), ["neg_clip_loss"]
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 1
    advice = "delete that file and run `clipdata score` again"
    for bad, said in ((bytes(flipped), "damaged"), (good + b"x", f"says {len(good):,} bytes; {advice}")):
        part.write_bytes(bad)
        with pytest.raises(InputError, match=said) as raised:
            score_tables.open_tables([str(tmp_path / "out")]).read(names)
        assert str(raised.value).endswith(advice)
        part.unlink()
        with pytest.raises(InputError, match=r"is missing, _manifest\.json says .* bytes; run `clipdata score`"):
            score_tables.open_tables([str(tmp_path / "out")])
        assert clipdata(*flags).returncode == 0
        assert part.read_bytes() == good


def test_an_unfinished_pool_is_refused(tmp_path, pool, clipdata):
    (tmp_path / "pool" / "_plan.json").write_text("{}")
    done = clipdata("score", "pool", "--out", "out")
    assert done.returncode == 2
    assert "pool: the run that fills it isn't finished" in done.stderr


def test_the_limit_of_bad_rows_holds_over_workers(tmp_path, pool, clipdata):
    img = pool["img"][:90].copy()
    img[:10] = 0
    edit_npz(tmp_path / "pool" / "00000000.npz", b32_img=img)
    flags = ("score", "pool", "--out", "out", *SMALL)
    assert clipdata(*flags, "--worker", "0/2", "--max-bad-rows", 0.5).returncode == 0
    done = clipdata(*flags)
    assert done.returncode == 2
    assert "10 of 250 pairs have embeddings that are not unit vectors" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "_manifest.json").exists()
    assert clipdata(*flags, "--max-bad-rows", 0.5).returncode == 0


def test_bad_rows_are_masked_counted_and_shift_nothing(tmp_path, pool, clipdata):
    img, txt = pool["img"][:90].copy(), pool["txt"][:90].copy()
    img[3], txt[10], img[20] = np.nan, 0, img[20] * 1.1
    edit_npz(tmp_path / "pool" / "00000000.npz", b32_img=img, b32_txt=txt)
    done = clipdata("score", "pool", "--out", "few", *SMALL)
    assert done.returncode == 2
    assert "--max-bad-rows" in done.stderr
    assert "row 3, not finite" in done.stderr
    done = clipdata("score", "pool", "--out", "out", *SMALL, "--max-bad-rows", 0.02)
    assert done.returncode == 0, done.stderr
    assert "1 not finite, 1 not of unit norm, 1 zero;" in done.stdout
    good = np.ones(250, bool)
    good[[3, 10, 20]] = False
    found = read(tmp_path / "out", "clip_score", "neg_clip_loss")
    assert np.all(np.isnan(found["neg_clip_loss"]) == ~good)
    assert np.all(np.isnan(found["clip_score"]) == ~good)
    made = {**pool, "img": np.concatenate([np.where(good[:90, None], img, 0), pool["img"][90:]])}
    want = expected_neg_clip_loss(made, [90, 160], 0.01, good)
    np.testing.assert_allclose(found["neg_clip_loss"][good], want[good], atol=5e-6)
    masked = json.loads((tmp_path / "out" / "_manifest.json").read_text())["masked_rows"]
    assert masked == [
        {"reason": reason, "row": row, "shard": "00000000"}
        for row, reason in ((3, "not finite"), (10, "zero"), (20, "not of unit norm"))
    ]
    done = clipdata("score", "pool", "--out", "scaled", *SMALL, "--max-bad-rows", 0.02, "--normalize")
    assert done.returncode == 0
    assert "1 not finite, 1 zero;" in done.stdout


@pytest.mark.parametrize(("texts", "group"), [(1, 1), (3, 3)])
def test_normalized_float16_rows_are_scored_as_exactly_as_float32_rows(tmp_path, clipdata, texts, group):
    made = make_pool(tmp_path / "pool", [60, 50, 40])
    img, txt = 3 * made["img"], (texts * made["txt"]).astype(np.float16)
    img[110:] = made["img"][110:]  # the last shard is of unit norm
    for shard, start in enumerate([0, 60, 110]):
        rows = slice(start, start + [60, 50, 40][shard])
        edit_npz(tmp_path / "pool" / f"{shard:08d}.npz", b32_img=img[rows], b32_txt=txt[rows])
    done = clipdata("score", "pool", "--out", "s", "--batch-size", 40, "--group", group, "--normalize")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "s", "clip_score")
    f, g = (rows.astype(np.float64) for rows in (img, txt))
    f, g = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (f, g))
    np.testing.assert_allclose(found["clip_score"][:110], (f * g).sum(1)[:110], atol=3e-7)
    np.testing.assert_allclose(found["clip_score"][110:], (f * g).sum(1)[110:], atol=5e-4)


def test_the_standard_error_is_there_where_there_are_several_batches(tmp_path, pool, clipdata):
    assert clipdata("score", "pool", "--out", "several", *SMALL, "--temperature", 0.5).returncode == 0
    assert clipdata("score", "pool", "--out", "one", "--temperature", 0.5).returncode == 0
    error = read(tmp_path / "several", "neg_clip_loss_se")["neg_clip_loss_se"]
    assert np.all(error > 0)
    assert np.median(error) < 0.05
    assert np.isnan(read(tmp_path / "one", "neg_clip_loss_se")["neg_clip_loss_se"]).all()
    assert pq.read_table(tmp_path / "one" / "00000000.parquet")["neg_clip_loss_se"].null_count == 90


def test_scores_can_be_added_later(tmp_path, pool, clipdata):
    assert clipdata("score", "pool", "--out", "a", "--scores", "clip_score").returncode == 0
    added = clipdata("score", "pool", "--out", "b", "--scores", "norm_sim", "--target", "t=target.npy")
    assert added.returncode == 0, added.stderr
    table = score_tables.open_tables([str(tmp_path / "a"), str(tmp_path / "b")])
    assert set(table.columns) == {"clip_score", "norm_sim_inf_t"}
    assert len(table) == 250


def test_clip_retrieval_folders_are_read(tmp_path, pool, clipdata):
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "cr" / name).mkdir(parents=True)
    for index, rows in enumerate((slice(0, 100), slice(100, 250))):
        np.save(tmp_path / "cr" / "img_emb" / f"img_emb_{index}.npy", pool["img"][rows])
        np.save(tmp_path / "cr" / "text_emb" / f"text_emb_{index}.npy", pool["txt"][rows])
        metadata = pa.table(
            {"image_path": [str(i) for i in range(250)][rows], "caption": ["c"] * len(pool["uid"][rows])}
        )
        pq.write_table(metadata, tmp_path / "cr" / "metadata" / f"metadata_{index}.parquet")
    done = clipdata("score", "cr", "--out", "out")
    assert done.returncode == 0, done.stderr
    want = (pool["img"].astype(float) * pool["txt"]).sum(axis=1)
    np.testing.assert_allclose(read(tmp_path / "out", "clip_score")["clip_score"], want, atol=1e-6)


def test_arrays_of_other_names_are_read(tmp_path, pool, clipdata):
    """Named by --image-key and --text-key, the embeddings of a target likewise; bfloat16 as NumPy stores it, |V2."""
    for name, kind in (("other", np.float16), ("bf16", ml_dtypes.bfloat16)):
        shutil.copytree(tmp_path / "pool", tmp_path / name)
        for path in (tmp_path / name).glob("*.npz"):
            with np.load(path) as file:
                np.savez(path, image_embeddings=file["b32_img"].astype(kind), text=file["b32_txt"].astype(kind))
    np.savez(tmp_path / "t.npz", image_embeddings=pool["img"][:9], b32_img=pool["img"][:9])
    flags = ("--target", "t=t.npz", "--scores", "clip_score", "norm_sim", "--p", "inf", 2, "--out")
    keys = ("--image-key", "image_embeddings", "--text-key", "text")
    assert clipdata("score", "pool", *flags, "want").returncode == 0
    for name, within in (("other", 0), ("bf16", 8e-3)):
        done = clipdata("score", name, *keys, *flags, f"{name}-scores")
        assert done.returncode == 0, done.stderr
        names = "clip_score", "norm_sim_inf_t", "norm_sim_2_t"
        got, want = read(tmp_path / f"{name}-scores", *names), read(tmp_path / "want", *names)
        for column in names:
            np.testing.assert_allclose(got[column], want[column], rtol=within)
    for more, words in (
        ((), "00000000.npz: holds image_embeddings, text; expected <tag>_img and <tag>_txt, e.g. b32_img; name others"),
        (("--image-key", "image_embeddings"), "has no embeddings of captions (name their array with --text-key)"),
        (("--text-key", "text"), "--text-key is 'text', expected no value without --image-key"),
        (("--image-key", "img"), "holds image_embeddings, text; --image-key img is not among them"),
    ):
        done = clipdata("score", "other", *more, "--out", "no")
        assert done.returncode == 2, done.stdout
        assert words in done.stderr
    assert clipdata("plan", "--", "score", "other", *keys, *flags, "no").returncode == 0


@pytest.mark.parametrize("form", ["npz", "clip-retrieval"])
def test_images_without_captions_have_norm_sims(tmp_path, pool, clipdata, form):
    (tmp_path / "cr/img_emb").mkdir(parents=True)
    if form == "npz":
        shutil.copytree(tmp_path / "pool", tmp_path / "cr", dirs_exist_ok=True)
        (tmp_path / "cr/img_emb").rmdir()
        for path in (tmp_path / "cr").glob("*.npz"):
            with np.load(path) as file:
                np.savez(path, b32_img=file["b32_img"])
        (tmp_path / "cr/._00000000.npz").write_bytes(b"\0\5\x16\7")  # macOS leaves such files
    else:
        (tmp_path / "cr/metadata").mkdir()
        np.save(tmp_path / "cr/img_emb/img_emb_0.npy", pool["img"])
        pq.write_table(pa.table({"image_path": ["x.jpg"] * 250}), tmp_path / "cr/metadata/metadata_0.parquet")
    np.save(tmp_path / "t.npy", pool["img"][5:14])
    done = clipdata("score", "cr", "--target", "t=t.npy", "--out", "no")
    assert done.returncode == 2
    assert "cr: has no embeddings of captions, which clip_score and neg_clip_loss need; images alone" in done.stderr
    done = clipdata("score", "cr", "--target", "t=t.npy", "--scores", "norm_sim", "--out", "out", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    want = np.abs(pool["img"].astype(float) @ pool["img"][5:14].astype(float).T).max(axis=1)
    np.testing.assert_allclose(read(tmp_path / "out", "norm_sim_inf_t")["norm_sim_inf_t"], want, atol=1e-6)


def test_torch_files_are_named_with_the_way_to_convert_them(tmp_path, pool, clipdata):
    with zipfile.ZipFile(tmp_path / "in1k.pt", "w") as file:  # as torch.save writes them
        file.writestr("in1k/data.pkl", b"\x80\x02}.")
    done = clipdata("score", "pool", "--target", "in1k=in1k.pt", "--out", "out")
    assert done.returncode == 2
    assert "in1k.pt: is a pickle, as torch.save writes it, not embeddings as .npy; pickles are never" in done.stderr
    assert "numpy.save('target.npy', torch.load('in1k.pt')['image_features'].numpy())" in done.stderr


def test_a_limit_scores_the_first_pairs(tmp_path, pool, clipdata):
    done = clipdata("score", "pool", "--scores", "clip_score", "--limit", 95, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "--limit left the first 95 of 250 pairs of the pool" in done.stdout
    want = (pool["img"][:95].astype(float) * pool["txt"][:95]).sum(axis=1)
    np.testing.assert_allclose(read(tmp_path / "out", "clip_score")["clip_score"], want, atol=1e-6)
    manifest = json.loads((tmp_path / "out/_manifest.json").read_text())
    assert (manifest["options"]["limit"], manifest["rows"], manifest["pairs_in_the_pool"]) == (95, 95, 250)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        "00000000.parquet",
        "00000001.parquet",
    ]
    assert clipdata("verify", "out").returncode == 0
    assert "95 pairs, 2 shards" in clipdata("plan", "--", "score", "pool", "--limit", 95, "--out", "new").stdout
    again = clipdata("score", "pool", "--scores", "clip_score", "--out", "out")
    assert again.returncode == 2
    assert "--limit was 95, now null" in again.stderr


def test_an_output_of_another_run_is_left_alone(tmp_path, pool, clipdata):
    assert clipdata("score", "pool", "--out", "out", *SMALL).returncode == 0
    before = (tmp_path / "out" / "00000000.parquet").read_bytes()
    done = clipdata("score", "pool", "--out", "out", *SMALL, "--seed", 1)
    assert done.returncode == 2
    assert "(--seed was 0, now 1)" in done.stderr
    assert (tmp_path / "out" / "00000000.parquet").read_bytes() == before
    done = clipdata("score", "pool", "--out", "pool", *SMALL)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_shuffled_captions_of_real_images_are_found(tmp_path, shared, clipdata):
    """1,000 Flickr8k pairs with a TinyCLIP's embeddings, 30 % of the captions shuffled among themselves."""
    folder = shared("data/flickr8k_val1000")
    img, txt = (np.load(folder / f"tinyclip_{side}.npy") for side in ("img", "txt"))
    areas: dict[str, list[float]] = {"clip_score": [], "neg_clip_loss": []}
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "pool" / name).mkdir(parents=True)
    for seed in range(5):
        random = np.random.default_rng(seed)
        wrong = random.permutation(1000)[:300]
        shuffled = txt.copy()
        shuffled[wrong] = txt[np.roll(wrong, 1)]
        np.save(tmp_path / "pool" / "img_emb" / "img_emb_0.npy", img)
        np.save(tmp_path / "pool" / "text_emb" / "text_emb_0.npy", shuffled)
        pq.write_table(pa.table({"caption": ["c"] * 1000}), tmp_path / "pool" / "metadata" / "metadata_0.parquet")
        done = clipdata("score", "pool", "--out", f"out{seed}", "--temperature", 0.01)
        assert done.returncode == 0, done.stderr
        found = read(tmp_path / f"out{seed}", *areas)
        bad = np.zeros(1000, bool)
        bad[wrong] = True
        for column, values in found.items():
            above = values[~bad][:, None] > values[bad][None, :]
            areas[column].append(float(above.mean()))
    # Single seeds spread by 0.001 about the mean: a wrong caption sometimes happens to fit.
    assert np.mean(areas["neg_clip_loss"]) >= 0.997, areas
    assert min(areas["neg_clip_loss"]) >= 0.995, areas
    assert min(areas["clip_score"]) >= 0.990, areas
    assert np.mean(areas["neg_clip_loss"]) > np.mean(areas["clip_score"])


def test_processes_on_an_object_store_take_rows_from_the_first_one_s_plan(tmp_path, clipdata, monkeypatch):
    make_pool(tmp_path / "made", [40, 40], dim=8)
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/made/", "/planned/pool/", recursive=True)
    command = ("score", "memory://planned/pool", "--out", "memory://planned/scores", "--scores", "clip_score")
    units = ("--batch-size", 40, "--group", 1)
    assert clipdata(*command, *units, "--worker", "0/2").returncode == 0
    asked = []
    monkeypatch.setattr(embedding_shards, "_rows_or_error", asked.append)
    done = clipdata(*command, *units, "--worker", "1/2")
    assert done.returncode == 0, done.stderr
    assert not asked, done.stderr
    assert "Scored 80 pairs" in done.stdout
    monkeypatch.undo()
    assert "another run" in clipdata(*command, "--batch-size", 20, "--group", 1).stderr
