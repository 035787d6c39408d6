"""The real `clipdata filter` against DataComp's rules stated a pair at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import metadata_pools as made

from clipdata_jax.errors import InputError
from clipdata_jax.filters import languages
from clipdata_jax.formats import uid_files, uids


def run(clipdata, preset, *more):
    """The uids that the command keeps, in order, and what it prints."""
    out = Path("subset.npy")
    done = clipdata("filter", "metadata", "--preset", preset, *more, "--out", out)
    assert done.returncode == 0, done.stderr
    written = np.load(out, allow_pickle=False)
    assert written.dtype == np.dtype("u8,u8")
    out.unlink()
    return uids.to_hex(written), done.stdout


@pytest.mark.parametrize(
    ("preset", "keep"),
    [
        ("no_filter", lambda row: True),
        ("basic_filter", made.basic),
        (
            "laion2b",
            lambda row: row["text"] is not None and made.is_english(row["text"]) and made.reaches(row, "b32", 0.28),
        ),
    ],
)
def test_a_preset_keeps_what_its_rule_says(tmp_path, clipdata, preset, keep):
    pairs = made.rows()
    made.write(tmp_path / "metadata", pairs)
    kept, _ = run(clipdata, preset)
    assert kept == made.subset(pairs, keep)
    assert kept


def test_the_bounds_of_the_basic_filter(tmp_path, clipdata):
    """Each pair by itself, so that a rule that is wrong in two ways can't hide."""
    good = {"text": "the house is old", "original_width": 200, "original_height": 600}
    cases = [
        (good, True),
        ({**good, "original_width": 199}, False),
        ({**good, "original_height": 601}, False),
        ({**good, "text": "a b cd"}, made.is_english("a b cd")),
        ({**good, "text": "a b c"}, False),
        ({**good, "text": "the house"}, False),
        ({**good, "text": None}, False),
        ({**good, "text": "das Haus ist sehr alt und klein"}, False),
    ]
    pairs = [{**row, "uid": f"{index:032x}"} for index, (row, _) in enumerate(cases)]
    made.write(tmp_path / "metadata", pairs)
    kept, text = run(clipdata, "basic_filter")
    assert kept == [row["uid"] for row, (_, want) in zip(pairs, cases, strict=True) if want]
    assert "text: 1 pair without a value" in text
    assert "lid.176.ftz" in text


def test_another_model_of_languages_is_taken_where_one_is_given(tmp_path, clipdata):
    """The full model is too large for a test: a name that isn't the small form's stands for it."""
    made.write(tmp_path / "metadata", made.rows())
    shutil.copy(languages.small_model(), tmp_path / "lid.176.bin")
    small, _ = run(clipdata, "laion2b")
    Path("subset.npy.manifest.json").unlink()
    kept, text = run(clipdata, "laion2b", "--lid-model", "lid.176.bin")
    assert kept == small
    assert "gcld3" in text
    assert "lid.176.ftz" not in text
    inputs = json.loads(Path("subset.npy.manifest.json").read_text())["inputs"]
    assert [entry["relative"] for entry in inputs] == ["lid.176.bin"]


@pytest.mark.parametrize("arch", ["b32", "l14"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.29, 0.3, 0.5, 0.81, 0.9, 1])
def test_a_fraction_keeps_the_pair_after_it_and_all_ties(tmp_path, clipdata, arch, share):
    pairs = made.rows()
    made.write(tmp_path / "metadata", pairs)
    kept, text = run(clipdata, "clip_score", "--arch", arch, "--fraction", share)
    want = made.fraction(pairs, arch, share)
    assert kept == made.subset(want)
    scored = len(made.fraction(pairs, arch, 1))
    some, every = f"{len(want):,} reach the bound", f"only {scored:,} have a score: all of these are kept"
    assert (every if int(len(pairs) * share) >= scored else some) in text


def test_a_fraction_of_different_scores_keeps_one_more_than_asked(tmp_path, clipdata):
    pairs = [{"uid": f"{index:032x}", "clip_l14_similarity_score": index / 100} for index in range(100)]
    made.write(tmp_path / "metadata", pairs)
    # int(100 * 0.29) is 28 in floating point, in DataComp's code as here.
    kept, text = run(clipdata, "clip_score", "--arch", "l14", "--fraction", "0.29")
    assert kept == [row["uid"] for row in pairs[-29:]]
    assert "28 pairs are 0.29 of the pool and 29 reach the bound" in text
    assert "one more" in text


def test_infinite_scores_count_and_missing_ones_come_last(tmp_path, clipdata):
    """The reference: v >= -np.sort(-v)[int(len(v) * share)], where NaN sorts last."""
    name = "clip_l14_similarity_score"
    scores = np.array([np.inf, 0.25, np.nan, 0.5, -np.inf, 0.125, np.nan, np.inf])
    made.write(tmp_path / "metadata", [{"uid": f"{i:032x}", name: float(score)} for i, score in enumerate(scores)])
    for share, notes in (
        (0.1, "0 pairs are 0.1 of the pool and 2 reach the bound"),
        (0.5, "4 pairs are 0.5 of the pool and 5 reach the bound"),
    ):
        bound = -np.sort(-scores)[int(8 * share)]
        kept, text = run(clipdata, "clip_score", "--arch", "l14", "--fraction", share)
        assert [int(uid, 16) for uid in kept] == np.flatnonzero(scores >= bound).tolist()
        assert notes in text
    kept, text = run(clipdata, "clip_score", "--arch", "l14", "--fraction", 0.8)
    assert len(kept) == 6
    assert "6 pairs are 0.8 of the pool and only 6 have a score: all of these are kept, where DataComp's" in text
    kept, text = run(clipdata, "clip_score", "--arch", "l14", "--threshold", 0.3)
    assert [int(uid, 16) for uid in kept] == [0, 3, 7]
    assert f"{name}: 2 pairs without a value" in text


@pytest.mark.parametrize("threshold", [0.28, 0.25, 0.250001, -1])
def test_a_threshold_is_met_in_the_columns_precision(tmp_path, clipdata, threshold):
    pairs = made.rows()
    made.write(tmp_path / "metadata", pairs)
    for arch in ("b32", "l14"):
        kept, _ = run(clipdata, "clip_score", "--arch", arch, "--threshold", threshold)
        assert kept == made.subset(pairs, lambda row, arch=arch: made.reaches(row, arch, threshold))


def test_a_filter_that_keeps_nothing_writes_nothing_and_says_where(tmp_path, clipdata):
    made.write(tmp_path / "metadata", made.rows())
    done = clipdata("filter", "metadata", "--preset", "clip_score", "--arch", "l14", "--threshold", 2, "--out", "s.npy")
    assert done.returncode == 2
    assert "the filter keeps nothing" in done.stderr
    assert "clip_l14_similarity_score of at least 2" in done.stderr
    assert not (tmp_path / "s.npy").exists()


def test_a_uid_is_kept_once(tmp_path, clipdata):
    made.write(tmp_path / "metadata", made.rows()[:9] * 2)
    kept, text = run(clipdata, "no_filter")
    assert len(kept) == 9
    assert "9 kept pairs repeat the uid of another" in text


def test_text_may_be_categories_or_views(tmp_path, clipdata):
    """As pandas and Polars write it."""
    view = (
        pa.string_view() if int(pa.__version__.split(".")[0]) >= 21 else pa.large_string()
    )  # older ones write no views
    pairs = made.rows()
    made.write(tmp_path / "metadata", pairs)
    want, _ = run(clipdata, "basic_filter")
    for path, encode in zip(
        sorted((tmp_path / "metadata").glob("*.parquet")),
        (pa.ChunkedArray.dictionary_encode, lambda text: text.cast(view)),
    ):
        table = pq.read_table(path)
        texts = {name: encode(table[name]) for name in ("uid", "text")}
        pq.write_table(pa.table({name: texts.get(name, table[name]) for name in table.column_names}), path)
    assert run(clipdata, "basic_filter")[0] == want


def test_files_may_hold_columns_of_different_types(tmp_path, clipdata):
    scores = [
        pa.array([0.1, None, 0.5], pa.float64()),
        pa.nulls(2),
        pa.array(np.array([0.25, 0.75], np.float16)),
        pa.array([1, 0]),
    ]
    (tmp_path / "metadata").mkdir()
    for part, column in enumerate(scores):
        uid = [f"{10 * part + row:032x}" for row in range(len(column))]
        table = pa.table({"uid": pa.array(uid, pa.large_string()), "clip_l14_similarity_score": column})
        pq.write_table(table, tmp_path / "metadata" / f"{part}.parquet")
    kept, text = run(clipdata, "clip_score", "--arch", "l14", "--fraction", "0.3")
    assert [int(uid, 16) for uid in kept] == [2, 21, 30]
    assert "clip_l14_similarity_score: 3 pairs without a value" in text
    assert "at least 0.5" in text


def test_the_manifest_says_all_of_it_and_is_deterministic(tmp_path, clipdata):
    pairs = made.rows()
    made.write(tmp_path / "metadata", pairs)
    written = []
    for _ in range(2):
        assert clipdata("filter", "metadata", "--preset", "basic_filter", "--out", "s.npy").returncode == 0
        written.append((tmp_path / "s.npy.manifest.json").read_bytes())
    assert written[0] == written[1]
    content = json.loads(written[0])
    assert (content["command"], content["pairs"]) == ("filter", len(pairs))
    assert content["kept"] == len(made.subset(pairs, made.basic)) == content["steps"][-1]["kept"]
    assert content["without_value"]["original_width"] == len(made.CAPTIONS)
    assert content["without_value"]["text"] == len(made.SIZES)
    assert content["inputs"][0]["name"].endswith("lid.176.ftz")
    parts = sorted((tmp_path / "metadata").glob("*.parquet"))
    assert [(part["name"], part["bytes"]) for part in content["pool_files"]] == [
        (str(path), path.stat().st_size) for path in parts
    ]
    done = clipdata("filter", "metadata", "--preset", "no_filter", "--out", "s.npy")
    assert done.returncode == 2
    assert "already holds the results of another run (--preset was" in done.stderr
    (tmp_path / "s.npy.manifest.json").unlink()
    done = clipdata("filter", "metadata", "--preset", "basic_filter", "--out", "s.npy")
    assert done.returncode == 2
    assert "was not written by this command" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("metadata --preset clip_score --fraction 0.3", "--arch is None"),
        ("metadata --preset clip_score --arch b32", "--fraction is None"),
        ("metadata --preset clip_score --arch b32 --fraction 0.3 --threshold 0.2", "one of the two"),
        ("metadata --preset clip_score --arch b32 --fraction 1.5", "--fraction is 1.5"),
        ("metadata --preset clip_score --arch b32 --threshold nan", "--threshold is nan"),
        ("metadata --preset laion2b --threshold 0.3", "--threshold is 0.3"),
        ("metadata --preset laion2b --synsets ids.txt", "--synsets is 'ids.txt', expected no value"),
        ("metadata --preset text_based", "--synsets is None"),
        ("metadata --preset best_filter", "basic_filter"),
        ("metadata --preset clip_score --arch h14 --fraction 0.3", "'clip_h14_similarity_score' is missing; it has"),
        ("metadata --preset basic_filter --lid-model none.bin", "none.bin: no such file"),
        ("metadata --preset basic_filter --lid-model metadata/00000000.parquet", "not a fastText model"),
        ("nowhere --preset no_filter", "nowhere: no such folder"),
        ("empty --preset no_filter", "empty: holds nothing; expected metadata"),
        ("none --preset no_filter", "holds no pairs"),
        ("odd --preset basic_filter", "column 'text' holds int64, expected text"),
        ("odd --preset clip_score --arch b32 --threshold 0", "holds string, expected numbers"),
        ("broken --preset no_filter", "not a parquet file"),
    ],
)
def test_bad_input_is_named(tmp_path, clipdata, arguments, words):
    made.write(tmp_path / "metadata", made.rows()[:20])
    made.write(tmp_path / "none", [])
    for folder in ("empty", "odd", "broken"):
        (tmp_path / folder).mkdir()
    odd = {
        "uid": ["0" * 32],
        "text": [3],
        "original_width": [3],
        "original_height": [3],
        "clip_b32_similarity_score": ["a"],
    }
    pq.write_table(pa.table(odd), tmp_path / "odd" / "0.parquet")
    (tmp_path / "broken" / "0.parquet").write_bytes(b"PAR1 nothing PAR1")
    done = clipdata("filter", *arguments.split(), "--out", "s.npy")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s.npy").exists()


def test_what_is_not_installed_is_named(monkeypatch):
    languages._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(languages.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"pip install .*\[filters\].*--lid-model"):
            languages.Languages()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fasttext", None)
        with pytest.raises(InputError, match=r"fastText.*not installed.*pip install .*\[filters\]"):
            languages.Languages()


def test_languages_of_real_alt_texts(shared):
    table = pq.read_table(shared("data/alt_texts") / "alt_texts_10000.parquet", columns=["TEXT"])
    found = languages.Languages().are_english(table["TEXT"].to_numpy()[:2000])
    assert 0.8 < found.mean() < 0.95


def test_processes_tell_the_same_languages(monkeypatch):
    captions = np.array([text for text in made.CAPTIONS if text is not None], object)
    monkeypatch.setattr(languages, "_MANY", 2)
    monkeypatch.setattr(languages, "_CHUNK", 4)
    found = languages.Languages(processes=2).are_english(captions)
    assert found.tolist() == [made.is_english(text) for text in captions]


def test_filtering_metadata_imports_no_jax(tmp_path):
    made.write(tmp_path / "metadata", made.rows())
    code = (
        "import sys\nfrom clipdata_jax import cli\n"
        "assert cli.main(['filter', 'metadata', '--preset', 'basic_filter', '--out', 's.npy']) == 0\n"
        "assert not {'jax', 'flax', 'torch', 'nltk'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False, env={"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_broken_file_is_skipped_where_that_is_asked(tmp_path, clipdata):
    pairs = made.rows()
    made.write(tmp_path / "metadata", pairs)
    half = (tmp_path / "metadata/00000001.parquet").read_bytes()
    (tmp_path / "metadata/00000001.parquet").write_bytes(half[: len(half) // 2])
    by_score = ("--preset", "clip_score", "--arch", "b32", "--fraction", 0.3)
    stopped = clipdata("filter", "metadata", *by_score, "--out", "s.npy")
    assert stopped.returncode == 2
    assert "(or use --on-bad skip)" in stopped.stderr
    done = clipdata("filter", "metadata", *by_score, "--on-bad", "skip", "--out", "s.npy")
    assert done.returncode == 0, done.stderr
    assert "Skipped 1 file" in done.stdout.splitlines()[-1]
    assert "00000001.parquet" in done.stdout
    told = json.loads((tmp_path / "s.npy.manifest.json").read_text())
    assert [one["file"] for one in told["skipped"]] == ["metadata/00000001.parquet"]
    left = [row for number, row in enumerate(pairs) if number % 3 != 1]
    assert uids.to_hex(uid_files.read_subset(str(tmp_path / "s.npy"))) == made.subset(made.fraction(left, "b32", 0.3))
