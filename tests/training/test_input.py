"""The input of training: the batches that the order says, from any source, by any workers, resumed anywhere."""

import io
import json
import os
import signal
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipdata_jax import models
from clipdata_jax.errors import InputError
from clipdata_jax.formats import tars, uids
from clipdata_jax.formats.sources import discovery
from clipdata_jax.runtime import parallel
from clipdata_jax.training import Batch, DeviceBatches, InputPipeline, batch_rows, build_index
from clipdata_jax.training.crops import crop_box, crop_uniforms

WORDS = ["red", "green", "blue", "house", "sea", "tree", "dog", "cloud"]
SIZE = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    captions = [f"a {one} {other}" for one in WORDS for other in WORDS]
    return models.train_tokenizer(captions, tmp_path_factory.mktemp("tokenizer"), vocab_size=600, context_length=12)


def image(i):
    rng = np.random.default_rng(i)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    small.resize((24 + i % 5, 20 + i % 7), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "png")
    return file.getvalue()


def caption(i):
    return f"a {WORDS[i % 8]} {WORDS[i // 8 % 8]}"


def uid(i):
    return f"{i * 7919:032x}"


def members(i, data=None):
    yield f"{i:04}.png", image(i) if data is None else data
    yield f"{i:04}.txt", caption(i).encode()
    yield f"{i:04}.json", json.dumps({"uid": uid(i)}).encode()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """40 pairs in four tars."""
    folder = tmp_path_factory.mktemp("pool")
    for tar in range(4):
        tars.write_tar(str(folder / f"{tar}.tar"), (m for i in range(10 * tar, 10 * tar + 10) for m in members(i)))
    return folder


def index_of(path, to, *, on_bad="stop", subset=None):
    found = discovery.find_sources([str(path)], images_only=False)
    sources = list(found.units.values())
    return build_index(sources, names=found.names, folder=str(to), on_bad=on_bad, subset=subset)


def batches_of(indexes, tokenizer, *, steps=7, batch_size=12, **options):
    setting = {"image_size": SIZE, "seed": 3, "batch_size": batch_size, "steps": steps, **options}
    with InputPipeline(indexes, tokenizer, **setting) as pipeline:
        found = list(pipeline)
    return found, pipeline


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for field in Batch._fields:
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def plain_crop(i, epoch, min_crop=0.9):
    """The crop of an image, by Pillow alone."""
    one = uids.from_hex([uid(i)])
    uniforms = crop_uniforms(seed=3, epoch=epoch, uid_hi=one["f0"], uid_lo=one["f1"])[0]
    with Image.open(io.BytesIO(image(i))) as opened:
        box = crop_box(*opened.size, uniforms, min_area=min_crop)
        return np.asarray(opened.convert("RGB").crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def index(pool, tmp_path_factory):
    return index_of(pool, tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def whole(index, tokenizer):
    return batches_of([index], tokenizer)[0]


def test_batches_are_the_pairs_that_the_order_says(index, tokenizer, whole):
    assert (len(index), index.random_access) == (40, True)
    for step, batch in enumerate(whole):
        rows = batch_rows(seed=3, step=step, pairs=40, batch_size=12).tolist()
        np.testing.assert_array_equal(batch.pixels, np.stack([plain_crop(i, step // 3) for i in rows]))
        np.testing.assert_array_equal(batch.ids, tokenizer([caption(i) for i in rows]))
        assert batch.mask.all()
    assert {part.dtype.name for part in whole[0]} == {"uint8", "int32", "bool"}
    centre = models.ImageTransform(size=SIZE)
    rows = batch_rows(seed=3, step=0, pairs=40, batch_size=12).tolist()
    plain = batches_of([index], tokenizer, steps=1, min_crop=1.0)[0][0]
    np.testing.assert_array_equal(plain.pixels, np.stack([centre(image(i)) for i in rows]))


@pytest.mark.parametrize("options", [{"start": 2}, {"start": 6}, {"workers": 2, "start": 1}])
def test_a_resumed_run_continues_with_the_same_batches_for_any_workers(index, tokenizer, whole, options):
    same(batches_of([index], tokenizer, **options)[0], whole[options["start"] :])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_out_a_batch(index, tokenizer, whole, count):
    shares = [batches_of([index], tokenizer, share=parallel.Share(i, count))[0] for i in range(count)]
    same([Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)], whole)


def folder_of(pairs, to):
    for i in pairs:
        for name, data in members(i):
            (to / name).write_bytes(data)


def table_of(pairs, to):
    (to / "images").mkdir()
    lines = ["file_name,caption,uid"]
    for i in pairs:
        (to / f"images/{i:04}.png").write_bytes(image(i))
        lines.append(f"images/{i:04}.png,{caption(i)},{uid(i)}")
    (to / "table.csv").write_text("\n".join(lines))


def parquet_of(pairs, to):
    columns = {"image": [image(i) for i in pairs], "caption": map(caption, pairs), "uid": map(uid, pairs)}
    table = pa.table({name: list(values) for name, values in columns.items()})
    for part in range(4):
        pq.write_table(table[10 * part : 10 * part + 10], to / f"{part}.parquet", row_group_size=4)


@pytest.mark.parametrize("write", [folder_of, table_of])
def test_image_files_are_read_at_random_as_tars_are(tmp_path, tokenizer, whole, write):
    (tmp_path / "pool").mkdir()
    write(range(40), tmp_path / "pool")
    index = index_of(tmp_path / "pool" / "table.csv" if write is table_of else tmp_path / "pool", tmp_path / "index")
    assert index.random_access
    same(batches_of([index], tokenizer)[0], whole)


def test_sources_in_blocks_give_each_pair_once_an_epoch_and_resume_anywhere(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "pool").mkdir()
    parquet_of(range(40), tmp_path / "pool")
    index = index_of(tmp_path / "pool", tmp_path / "index")
    assert not index.random_access
    options = {"shuffle_window": 8}
    found, _ = batches_of([index], tokenizer, **options)
    pictures = {plain_crop(i, epoch).tobytes(): i for i in range(40) for epoch in range(3)}
    seen = [[pictures[pixels.tobytes()] for pixels in batch.pixels] for batch in found]
    for batch, numbers in zip(found, seen, strict=True):
        np.testing.assert_array_equal(batch.ids, tokenizer([caption(i) for i in numbers]))
    for epoch in (seen[:3], seen[3:6]):
        assert len(set(np.concatenate(epoch).tolist())) == 36
    assert seen[:3] != seen[3:6]
    for start in (1, 4, 6):
        same(batches_of([index], tokenizer, start=start, **options)[0], found[start:])
    same(batches_of([index], tokenizer, workers=1, **options)[0], found)
    shares = [batches_of([index], tokenizer, share=parallel.Share(i, 2), **options)[0] for i in range(2)]
    same([Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)], found)
    with pytest.raises(InputError, match=r"some sources can't be read at random .*; give --sampling epochs"):
        batches_of([index], tokenizer, sampling="replacement")


def test_a_subset_counts_each_uid_as_often_as_it_is_named(pool, tmp_path, tokenizer):
    chosen = uids.from_hex([uid(i) for i in (3, 5, 21, 38)])
    counts = np.array([1, 3, 2, 1])
    index = index_of(pool, tmp_path / "index", subset=(chosen, counts))
    rows = index.files.rows()
    assert sorted(rows["uid_lo"].tolist()) == sorted(np.repeat(chosen["f1"], counts).tolist())
    assert (len(index), index.not_found, index.repeated_uids()) == (7, 0, 3)
    (batch,), _ = batches_of([index], tokenizer, steps=1, batch_size=7)
    expected = tokenizer([caption(i) for i in np.repeat([3, 5, 21, 38], counts)])
    assert sorted(batch.ids.tolist()) == sorted(expected.tolist())
    half = index_of(pool, tmp_path / "half", subset=(uids.from_hex([uid(3), "f" * 32]), np.array([1, 1])))
    assert (len(half), half.not_found) == (1, 1)
    with pytest.raises(InputError, match=r"none of the 1 uids of --subset is among the 40 pairs of the pool"):
        index_of(pool, tmp_path / "none", subset=(uids.from_hex(["f" * 32]), np.array([1])))
    with pytest.raises(InputError, match=r"found 7 pairs to train on, expected at least a batch of 8"):
        batches_of([index], tokenizer, batch_size=8)


def test_weights_are_kept_in_every_batch(pool, tmp_path, tokenizer):
    indexes = [index_of(pool / f"{i}.tar", tmp_path / str(i)) for i in (0, 1)]
    found, _ = batches_of(indexes, tokenizer, weights=(3.0, 1.0), steps=4, batch_size=8)
    own = {tuple(row) for row in tokenizer([caption(i) for i in range(10)]).tolist()}
    other = {tuple(row) for row in tokenizer([caption(i) for i in range(10, 20)]).tolist()} - own
    for batch in found:
        assert sum(tuple(row) not in other for row in batch.ids.tolist()) >= 6
    same(batches_of(indexes, tokenizer, weights=(3.0, 1.0), steps=4, batch_size=8, start=2)[0], found[2:])
    shares = [
        batches_of(indexes, tokenizer, weights=(3, 1), steps=4, batch_size=8, share=parallel.Share(i, 2))[0]
        for i in range(2)
    ]
    same([Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)], found)
    with pytest.raises(InputError, match=r"--weights gives source 2 of 2: no pair in a batch of 8"):
        batches_of(indexes, tokenizer, weights=(100, 1), batch_size=8)
    with pytest.raises(InputError, match=r"--weights has 3 numbers, expected one for each of the 2 sources"):
        batches_of(indexes, tokenizer, weights=(1, 1, 1))
    with pytest.raises(InputError, match=r"source 1 of 2: found 10 pairs .* a batch of 11, its share of 14"):
        batches_of(indexes, tokenizer, weights=(3, 1), batch_size=14)


def test_drawing_with_replacement_repeats_pairs(index, tokenizer):
    (batch, again), _ = batches_of([index], tokenizer, sampling="replacement", steps=2, batch_size=60)
    assert (batch.pixels != again.pixels).any()
    same(batches_of([index], tokenizer, sampling="replacement", steps=2, batch_size=60, start=1)[0], [again])


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pairs_keep_their_row_and_are_named_once(tmp_path, tokenizer, whole, workers):
    (tmp_path / "pool").mkdir()
    broken = {7: b"\xff\xd8\xff broken", 22: image(22)[:200]}
    for tar in range(4):
        numbers = range(10 * tar, 10 * tar + 10)
        tars.write_tar(str(tmp_path / f"pool/{tar}.tar"), (m for i in numbers for m in members(i, broken.get(i))))
    index = index_of(tmp_path / "pool", tmp_path / "index")
    found, pipeline = batches_of([index], tokenizer, workers=workers, on_bad="skip")
    for step, (batch, good) in enumerate(zip(found, whole, strict=True)):
        rows = batch_rows(seed=3, step=step, pairs=40, batch_size=12)
        mask = ~np.isin(rows, list(broken))
        np.testing.assert_array_equal(batch.mask, mask)
        np.testing.assert_array_equal(batch.pixels, good.pixels * mask[:, None, None, None])
        np.testing.assert_array_equal(batch.ids, good.ids * mask[:, None])
    assert sorted((os.path.basename(one.tar), one.key) for one in pipeline.skipped) == [
        ("0.tar", "0007"),
        ("2.tar", "0022"),
    ]
    with pytest.raises(InputError, match=r"\d\.tar: sample '00\d\d': .*; fix it, or pass --on-bad skip"):
        batches_of([index], tokenizer, workers=workers)


def test_what_the_headers_show_to_be_broken_is_left_out_or_stops(tmp_path, tokenizer):
    (tmp_path / "pool").mkdir()
    lacking = [("0.png", image(0)), ("0.txt", b"a dog"), ("1.txt", b"a tree"), ("2.png", image(2))]
    tars.write_tar(str(tmp_path / "pool/a.tar"), [*lacking, ("3.png", image(3)), ("3.json", b'{"caption": "a sea"}')])
    (tmp_path / "pool/b.tar").write_bytes(b"no tar" * 200)
    index = index_of(tmp_path / "pool", tmp_path / "index", on_bad="skip")
    assert [(one.key, one.reason[:10]) for one in index.skipped] == [("1", "no image a"), ("2", "no caption")]
    assert len(index.skipped_tars) == 1
    assert "b.tar: " in index.skipped_tars[0]
    (batch,), _ = batches_of([index], tokenizer, steps=1, batch_size=2)
    assert sorted(batch.ids.tolist()) == sorted(tokenizer(["a dog", "a sea"]).tolist())
    (tmp_path / "pool/b.tar").unlink()
    with pytest.raises(InputError, match=r"a\.tar: sample '1': no image among its members \(\.txt\); fix it"):
        index_of(tmp_path / "pool", tmp_path / "index")


def test_a_tar_that_changes_while_training_stops_or_is_masked(tmp_path, tokenizer):
    (tmp_path / "pool").mkdir()
    for tar in range(2):
        path = tmp_path / f"pool/{tar}.tar"
        tars.write_tar(str(path), (m for i in range(10 * tar, 10 * tar + 10) for m in members(i)))
    index = index_of(tmp_path / "pool", tmp_path / "index")
    os.truncate(path, 2000)
    with pytest.raises(InputError, match=r"1\.tar: has changed since training began \(2,000 bytes, .* before\)"):
        batches_of([index], tokenizer, steps=1)
    path.unlink()
    found, pipeline = batches_of([index], tokenizer, steps=2, on_bad="skip")
    for step, batch in enumerate(found):
        rows = batch_rows(seed=3, step=step, pairs=20, batch_size=12)
        np.testing.assert_array_equal(batch.mask, rows < 10)
    assert pipeline.skipped == []
    assert pipeline.skipped_tars == [f"{path}: can't be read any more (No such file or directory)"]


def test_device_batches_are_the_same_as_global_arrays(index, tokenizer, whole):
    mesh = parallel.data_mesh(jax.devices()[:4])
    with InputPipeline([index], tokenizer, batch_size=12, image_size=SIZE, seed=3, steps=7) as pipeline:
        with DeviceBatches(pipeline, mesh) as batches:
            same([Batch(*map(np.asarray, arrays)) for arrays in batches], whole)
        assert batches.wait_seconds >= 0
    again = InputPipeline([index], tokenizer, batch_size=12, image_size=SIZE, seed=3, steps=7)
    with again as pipeline, DeviceBatches(pipeline, mesh) as batches:
        next(batches)  # and leaves while more are in work


def test_a_worker_that_is_killed_is_an_error_and_none_stays_behind(index, tokenizer):
    with InputPipeline([index], tokenizer, batch_size=12, image_size=SIZE, seed=3, steps=900, workers=2) as pipeline:
        next(pipeline)
        # Half a second and 150 MB a process, and it could take a device.
        assert not pipeline._pool.submit(eval, "'jax' in __import__('sys').modules").result()
        processes = list(pipeline._pool._processes)
        os.kill(processes[0], signal.SIGKILL)
        with pytest.raises(InputError, match=r"a process that decoded images was killed, .* fewer --input-workers"):
            for _ in pipeline:
                time.sleep(0.001)
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{process}") for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
