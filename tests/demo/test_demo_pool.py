"""The files of the demonstration: deterministic, readable by anyone, and with a truth that is true."""

import collections
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipdata_jax.demo import spoils
from clipdata_jax.demo.facts import KINDS
from clipdata_jax.demo.pairs import SHARES
from clipdata_jax.demo.pool import make_clean_tars, make_pool, make_target, make_zero_shot
from clipdata_jax.errors import InputError

MAKERS = {
    "pool": lambda folder, seed: make_pool(folder, pairs=60, seed=seed, shards=2),
    "clean": lambda folder, seed: make_clean_tars(folder, pairs=20, seed=seed, web_share=0.3),
    "target": lambda folder, seed: make_target(folder, images=10, seed=seed),
    "zero_shot": lambda folder, seed: make_zero_shot(folder, per_class=1, seed=seed),
}


def contents(folder: str | pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def read_pairs(folder: str | pathlib.Path) -> list[dict[str, bytes]]:
    """The samples of a folder's tars in order, by extension, read with the standard library alone."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(pathlib.Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                samples.setdefault(f"{path.name}/{key}", {})[extension] = tar.extractfile(member).read()
    return list(samples.values())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool of 600 pairs: its samples, their kinds, and what each would be if it were sound."""
    folder = tmp_path_factory.mktemp("pool")
    make_pool(str(folder), pairs=600, shards=4)
    truth = pq.read_table(folder / "truth.parquet").to_pydict()
    return read_pairs(folder), truth


@pytest.mark.parametrize("maker", MAKERS)
def test_equal_arguments_give_equal_bytes(maker, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        MAKERS[maker](str(tmp_path / name), seed)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if not name.endswith(".json"))


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    program = "import sys; from clipdata_jax.demo.pool import make_pool; make_pool(sys.argv[1], pairs=60)"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / seed)], env=environment, timeout=60, check=True)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_drawing_needs_no_jax():
    program = "import sys, clipdata_jax.demo.pool; sys.exit('jax' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, check=True)


def test_pool_has_the_members_and_uids_it_says(pool):
    samples, truth = pool
    assert len(samples) == 600
    uids = []
    for sample in samples:
        assert sample.keys() == {"jpg", "txt", "json"}
        assert Image.open(io.BytesIO(sample["jpg"])).size == (64, 64)
        assert sample["txt"].decode().strip()
        uids.append(json.loads(sample["json"])["uid"])
    assert uids == truth["uid"]
    assert len(set(uids)) == 600
    assert all(len(uid) == 32 and set(uid) <= set("0123456789abcdef") for uid in uids)


def test_kinds_have_their_shares_in_every_shard(pool):
    kinds = pool[1]["kind"]
    assert collections.Counter(kinds) == {kind: round(600 * share) for kind, share in SHARES.items()}
    for start in range(0, 600, 150):
        counts = collections.Counter(kinds[start : start + 150])
        assert counts.keys() == SHARES.keys()
        assert 55 <= counts["sound"] <= 95


def test_shuffled_captions_belong_to_other_pairs(pool, monkeypatch, tmp_path):
    samples, truth = pool
    monkeypatch.setattr("clipdata_jax.demo.pool.deal_kinds", lambda pairs, seed: ["sound"] * pairs)
    make_pool(str(tmp_path), pairs=600, shards=4)
    sound = read_pairs(tmp_path)
    captions = {pair["txt"] for pair in sound}
    for sample, own, kind in zip(samples, sound, truth["kind"], strict=True):
        if kind == "shuffled":
            assert sample["jpg"] == own["jpg"]
            assert sample["txt"] != own["txt"]
            assert sample["txt"] in captions
        elif kind in ("boilerplate", "generic"):
            assert sample["jpg"] == own["jpg"]
            assert sample["txt"] not in captions
        elif kind == "blank":
            assert sample["txt"] == own["txt"]
        elif kind == "sound":
            assert sample == own


def test_generic_and_boilerplate_captions_are_of_their_lists(pool):
    samples, truth = pool
    found = collections.defaultdict(set)
    for sample, kind in zip(samples, truth["kind"], strict=True):
        found[kind].add(sample["txt"].decode())
    assert found["generic"] <= set(spoils.GENERIC)
    assert len(found["boilerplate"]) > 20
    assert not found["boilerplate"] & set(spoils.GENERIC)
    assert not any("{" in caption for captions in found.values() for caption in captions)


def test_blank_images_show_nothing_and_others_something(pool):
    samples, truth = pool
    for sample, kind in zip(samples, truth["kind"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])), np.float64)
        if kind == "blank":
            assert pixels.std(axis=(0, 1)).max() < 20
        elif kind != "text_image":
            assert pixels.std(axis=(0, 1)).max() > 10


def test_duplicates_copy_an_earlier_sound_pair(pool):
    samples, truth = pool
    seen, same_bytes = {}, 0
    for sample, kind in zip(samples, truth["kind"], strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])), np.float64)
        if kind == "sound":
            seen.setdefault(sample["txt"], []).append((sample["jpg"], pixels))
        elif kind == "duplicate":
            originals = seen[sample["txt"]]
            assert min(np.abs(pixels - original).mean() for _, original in originals) < 8
            same_bytes += any(sample["jpg"] == jpeg for jpeg, _ in originals)
    assert 5 < same_bytes < 31


def test_clean_pairs_are_sound_unless_asked(tmp_path):
    make_clean_tars(str(tmp_path / "clean"), pairs=50, shards=3)
    make_clean_tars(str(tmp_path / "web"), pairs=50, shards=3, web_share=0.5)
    clean, web = read_pairs(tmp_path / "clean"), read_pairs(tmp_path / "web")
    assert [sorted(sample) for sample in clean] == 50 * [["jpg", "json", "txt"]]
    assert not {sample["txt"].decode() for sample in clean} & set(spoils.GENERIC)
    assert (
        10
        < sum(
            sample["txt"] != other["txt"] or sample["jpg"] != other["jpg"]
            for sample, other in zip(clean, web, strict=True)
        )
        < 40
    )


def test_makers_share_no_image(tmp_path):
    for name, maker in MAKERS.items():
        maker(str(tmp_path / name), 0)
    sets = [{sample["jpg"] for sample in read_pairs(tmp_path / name)} for name in MAKERS if name != "target"]
    sets.append(set(contents(tmp_path / "target").values()))
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_zero_shot_set_is_labelled_and_balanced(tmp_path):
    make_zero_shot(str(tmp_path), per_class=2)
    samples = read_pairs(tmp_path)
    names, templates = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("classnames", "templates"))
    labels = [int(sample["cls"]) for sample in samples]
    assert sorted(labels) == sorted([*range(len(KINDS))] * 2)
    assert labels != sorted(labels)
    assert len(names) == len(set(names)) == len(KINDS)
    assert all(template.count("{c}") == 1 for template in templates)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: make_pool(f, pairs=10), "pairs is 10"),
        (lambda f: make_clean_tars(f, pairs=3, shards=4), "3 pairs don't make 4 shards"),
        (lambda f: make_clean_tars(f, pairs=3, web_share=1.5), "web_share is 1.5"),
        (lambda f: make_target(f, images=0), "images is 0"),
        (lambda f: make_zero_shot(f, per_class=0), "per_class is 0"),
    ],
)
def test_bad_arguments_are_named(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_sets_are_not_mixed(tmp_path):
    make_clean_tars(str(tmp_path), pairs=4, shards=2)
    with pytest.raises(InputError, match=r"00001\.tar"):
        make_clean_tars(str(tmp_path), pairs=4, shards=1)
