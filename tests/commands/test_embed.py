"""The real `clipdata embed` on made and real images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.checkpoints import CAPTIONS, make_checkpoint
from support.images import jpeg, write_pairs

from clipdata_jax import models
from clipdata_jax.formats import tars, uid_files, uids
from clipdata_jax.runs import telemetry


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "pool").mkdir()
    write_pairs(tmp_path / "pool" / "00000.tar", range(21))
    write_pairs(tmp_path / "pool" / "00001.tar", range(21, 30))
    return tmp_path / "pool"


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_shards_hold_what_the_model_makes_of_each_pair(tmp_path, pool, checkpoint, clipdata):
    done = clipdata("embed", "pool", "--model", f"tiny={checkpoint}", "--out", "out", "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    assert "Embedded 30 pairs as tiny, dimension 16" in done.stdout
    told = telemetry.read(str(tmp_path / "out" / "_run.jsonl"))
    assert sum(unit.rows for unit in told) == 30
    assert all(unit.rows_per_second > 0 for unit in told)
    assert all(unit.seconds["read"] > 0 and unit.seconds["compute"] > 0 for unit in told)
    model, tokenizer = models.load_clip(checkpoint), models.load_tokenizer(checkpoint)
    transform = models.load_image_transform(checkpoint)
    found = arrays(tmp_path / "out" / "00001.npz")
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
        "tiny_img": ((9, 16), "float16"),
        "tiny_txt": ((9, 16), "float16"),
    }
    images = jax.jit(models.CLIP.encode_image)(model, np.stack([transform(jpeg(seed)) for seed in range(21, 30)]))
    texts = jax.jit(models.CLIP.encode_text)(model, tokenizer([CAPTIONS[seed % 3] for seed in range(21, 30)]))
    np.testing.assert_allclose(found["tiny_img"].astype(np.float32), images, atol=5e-4)
    np.testing.assert_allclose(found["tiny_txt"].astype(np.float32), texts, atol=5e-4)
    table = pq.read_table(tmp_path / "out" / "00001.parquet").to_pydict()
    assert table["uid"] == [uids.uid_of("00001.tar", f"{seed:05}") for seed in range(21, 30)]
    assert table["text"] == [CAPTIONS[seed % 3] for seed in range(21, 30)]
    assert set(table["tar"]) == {"00001.tar"}
    assert table["key"][0] == "00021"
    assert table["original_width"] == [50] * 9
    assert table["original_height"] == [40] * 9
    want = np.einsum("nd,nd->n", images, texts)
    np.testing.assert_allclose(table["clip_tiny_similarity_score"], want, atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["models"]["tiny"]["digest"] == models.checkpoint_digest(checkpoint)
    assert abs(manifest["models"]["tiny"]["temperature"] - 0.07) < 1e-6


def test_the_same_bytes_on_any_number_of_devices_threads_and_workers(tmp_path, pool, checkpoint, clipdata):
    flags = ("embed", "pool/*.tar", "--model", checkpoint, "--batch-size", 8)
    assert clipdata(*flags, "--out", "one", "--decoders", 1).returncode == 0
    assert clipdata(*flags, "--out", "eight", "--decoders", 3, devices=8).returncode == 0
    for worker in ("0/2", "1/2"):
        assert clipdata(*flags, "--out", "dealt", "--worker", worker).returncode == 0
    for name in ("00000.npz", "00000.parquet", "00001.npz", "00001.parquet"):
        first = (tmp_path / "one" / name).read_bytes()
        assert first == (tmp_path / "eight" / name).read_bytes()
        assert first == (tmp_path / "dealt" / name).read_bytes()
    assert (tmp_path / "dealt" / "_manifest.json").exists()


def test_a_stopped_run_goes_on_where_it_was(tmp_path, pool, checkpoint, clipdata):
    flags = ("embed", "pool", "--model", checkpoint, "--batch-size", 8)
    assert clipdata(*flags, "--out", "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "_manifest.json").unlink()
    cut = tmp_path / "cut" / "00001.npz"
    cut.write_bytes(cut.read_bytes()[:100])
    kept = (tmp_path / "cut" / "00000.npz").stat().st_mtime_ns
    assert clipdata(*flags, "--out", "cut").returncode == 0
    assert (tmp_path / "cut" / "00000.npz").stat().st_mtime_ns == kept
    for name in ("00001.npz", "00001.parquet", "_manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bad_samples_stop_the_run_or_are_listed(tmp_path, checkpoint, clipdata):
    (tmp_path / "pool").mkdir()
    broken = {
        "00100__jpg": b"no image",
        "00100__txt": b"a caption",
        "00101__jpg": jpeg(1),
        "00101__txt": b"  \n",
        "00102__jpg": jpeg(1)[:300],
        "00102__txt": b"cut short",
        "00103__jpg": jpeg(3),
        "00103__txt": b"\xff\xfe",
        "00104__jpg": jpeg(4),
        "00105__txt": b"no image at all",
        "00106__jpg": jpeg(6),
        "00106__json": b'{"uid": 1.5, "caption": "bad uid"}',
    }
    write_pairs(tmp_path / "pool" / "00000.tar", range(3), **broken)
    flags = ("embed", "pool", "--model", checkpoint, "--out", "out", "--batch-size", 8)
    done = clipdata(*flags)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "00000.tar: sample '00100':" in done.stderr
    assert "--on-bad skip" in done.stderr
    done = clipdata(*flags, "--on-bad", "skip")  # goes on where the other stopped
    assert done.returncode == 0, done.stderr
    assert "Embedded 3 pairs as clip" in done.stdout
    assert "Skipped 7 samples" in done.stdout.splitlines()[-1]
    listed = json.loads((tmp_path / "out" / "_manifest.json").read_text())["skipped_samples"]
    assert [entry["key"] for entry in listed] == [f"{key:05}" for key in range(100, 107)]
    assert all(entry["tar"].endswith("00000.tar") and entry["reason"] for entry in listed)


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_truncated_tar_is_named_and_what_was_done_is_kept(tmp_path, pool, checkpoint, clipdata, kept):
    cut = pool / "00001.tar"
    cut.write_bytes(cut.read_bytes()[: int(kept * cut.stat().st_size)])
    flags = ("embed", "pool", "--model", checkpoint, "--batch-size", 8)
    done = clipdata(*flags, "--out", "out")
    assert done.returncode == 2
    assert "00001.tar: " in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "00000.npz").exists()
    assert not (tmp_path / "out" / "00001.npz").exists()
    done = clipdata(*flags, "--out", "skipped", "--on-bad", "skip")
    assert done.returncode == 0
    assert "Skipped 1 tar" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing", "--model", "CHECKPOINT"], "missing: no such file or folder"),
        (["empty", "--model", "CHECKPOINT"], "empty: the folder holds neither .tar files nor images"),
        (["pool/*.zip", "--model", "CHECKPOINT"], "matches no file"),
        (["pool", "--model", "nowhere"], "nowhere"),
        (["pool", "--model", "empty"], "config.json"),
        (["pool", "--model", "CHECKPOINT", "--batch-size", "0"], "--batch-size is 0"),
        (["--model", "CHECKPOINT"], "no input: give at least one tar"),
        (["pool", "pool/00000.tar", "--model", "CHECKPOINT"], "named twice"),
    ],
)
def test_bad_input_is_one_clear_sentence(tmp_path, pool, checkpoint, clipdata, arguments, words):
    (tmp_path / "empty").mkdir()
    given = [str(checkpoint) if word == "CHECKPOINT" else word for word in arguments]
    done = clipdata("embed", *given, "--out", "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_missing_tokenizer_is_told_first_and_not_missed_by_images(tmp_path, checkpoint, clipdata):
    shutil.copytree(checkpoint, tmp_path / "clip")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "clip" / name).unlink(missing_ok=True)
    write_pairs(tmp_path / "0.tar", range(2), **{"00100__jpg": b"no image"})
    flags = ("embed", "0.tar", "--model", "clip", "--batch-size", 4)
    done = clipdata(*flags, "--out", "pairs")
    assert done.returncode == 2, done.stderr
    assert "clip has no tokenizer; put the model's tokenizer.json there" in done.stderr, done.stderr
    done = clipdata(*flags, "--out", "target.npy", "--images-only", "--on-bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "Embedded 2 images" in done.stdout, done.stderr


def test_tars_of_an_unfinished_run_are_refused(tmp_path, pool, checkpoint, clipdata):
    (pool / "_plan.json").write_text("{}")
    done = clipdata("embed", "pool", "--model", checkpoint, "--out", "out")
    assert done.returncode == 2
    assert "pool: the run that fills it isn't finished" in done.stderr


def test_images_alone_make_a_target(tmp_path, pool, checkpoint, clipdata):
    (tmp_path / "images" / "inner").mkdir(parents=True)
    for seed in range(5):
        (tmp_path / "images" / ("inner" if seed > 2 else ".") / f"{seed}.jpg").write_bytes(jpeg(seed))
    flags = ("--model", f"tiny={checkpoint}", "--batch-size", 8)
    assert clipdata("embed", "pool", *flags, "--out", "meta").returncode == 0
    done = clipdata("embed", "images", "--images-only", *flags, "--out", "target")
    assert done.returncode == 0, done.stderr
    found = arrays(tmp_path / "target" / "images.npz")
    assert list(found) == ["tiny_img"]
    np.testing.assert_array_equal(found["tiny_img"], arrays(tmp_path / "meta" / "00000.npz")["tiny_img"][:5])
    done = clipdata("score", "meta", "--target", "t=target", "--out", "scores")
    assert done.returncode == 0, done.stderr
    assert "temperature 0.07" in done.stdout, done.stderr
    score = pq.read_table(tmp_path / "scores" / "00000.parquet")["norm_sim_inf_t"].to_numpy()
    np.testing.assert_allclose(score[:5], 1, atol=2e-3)


@pytest.mark.slow
def test_real_images_from_tar_to_subset(tmp_path, shared, clipdata):
    """Flickr8k's tars through a random ViT at 224 px with CLIP's own tokenizer."""
    folder, tokenizer = shared("data/flickr8k_val1000"), shared("golden/clip_tokenizer")
    from flax import nnx

    tower = {"width": 64, "layers": 1, "heads": 2, "mlp_width": 128}
    config = models.CLIPConfig(vision=models.VisionConfig(**tower), text=models.TextConfig(**tower), embed_dim=32)
    models.save_clip(models.CLIP(config, rngs=nnx.Rngs(0)), tmp_path / "vit")
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, tmp_path / "vit" / name)
    steps = [
        ("embed", folder / "0000{0..3}.tar", "--model", "vit", "--out", "meta", "--batch-size", 32),
        ("score", "meta", "--out", "scores", "--batch-size", 250),
        ("select", "scores", "--rule", "top(neg_clip_loss, 0.3)", "--out", "subset.npy"),
        ("reshard", folder, "--subset", "subset.npy", "--out", "selected"),
        ("report", "scores", "--subset", "subset.npy", "--pool", folder, "--out", "report.html"),
    ]
    for step in steps:
        done = clipdata(*step)
        assert done.returncode == 0, (step, done.stderr)
    subset = uid_files.read_subset(str(tmp_path / "subset.npy"))
    assert len(subset) == 300
    members = {}
    for path in sorted(folder.glob("*.tar")):
        members |= {json.loads(s.members["json"])["uid"]: s.members for s in tars.read_tar(str(path))}
    kept = [s for path in sorted((tmp_path / "selected").glob("*.tar")) for s in tars.read_tar(str(path))]
    assert sorted(json.loads(s.members["json"])["uid"] for s in kept) == uids.to_hex(subset)
    assert all(s.members == members[json.loads(s.members["json"])["uid"]] for s in kept)
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg") > 20
