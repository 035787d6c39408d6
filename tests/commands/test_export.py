"""`clipdata export` on small tables: every form, subsets, the best and the worst, metadata of another pool."""

import csv
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdata_jax import storage
from clipdata_jax.commands import export
from clipdata_jax.formats import score_tables, uids

CAPTIONS = ["a cat", 'he said "no", and\nleft', "naïve 🏠", None, "", " spaces ", "=1+1"]
SCORES = [0.1, np.nan, -0.5, 0.3, 0.3, 0.1, np.inf]
UIDS = [f"{row:032x}" for row in range(7)]
PARTS = {"00000": slice(0, 3), "00001": slice(3, 3), "00002": slice(3, 7)}


@pytest.fixture
def pool(tmp_path):
    """Two score tables of three parts, one without rows, and their metadata."""
    uid = uids.from_hex(UIDS)
    for name, rows in PARTS.items():
        columns = {"clip_score": np.float32(SCORES)[rows]}
        whole = {"norm_sim_inf_t": np.float32(range(7))[rows], "norm_sim_inf_t_row": np.arange(7, dtype=np.int32)[rows]}
        storage.write_bytes(str(tmp_path / f"scores/{name}.parquet"), score_tables.part_bytes(uid[rows], columns))
        storage.write_bytes(str(tmp_path / f"more/{name}.parquet"), score_tables.part_bytes(uid[rows], whole))
        described = {
            "uid": pa.array(UIDS[rows], pa.string()),
            "text": pa.array(CAPTIONS[rows], pa.large_string()),
            "tar": pa.array([f"{name}.tar"] * len(uid[rows]), pa.string()),
            "key": pa.array(range(7)[rows], pa.int64()),
            "id": pa.array([f"own {row}" for row in range(7)[rows]], pa.string()),
        }
        (tmp_path / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(described), tmp_path / f"metadata/{name}.parquet")
    return tmp_path


def expected(rows):
    """The rows as they should come back, null as None."""
    return [
        {
            "uid": UIDS[row],
            "id": f"own {row}",
            "source": "00000.tar" if row < 3 else "00002.tar",
            "key": str(row),
            "caption": CAPTIONS[row],
            "clip_score": None if np.isnan(SCORES[row]) else SCORES[row],
            "norm_sim_inf_t": float(row),
            "norm_sim_inf_t_row": row,
        }
        for row in rows
    ]


def read(path):
    """The rows of an exported file; a csv doesn't tell null from empty text."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        for row in found:
            row |= {name: float(row[name]) if row[name] else None for name in row if "clip" in name or "norm" in name}
            row["caption"] = row["caption"] or (None if row["uid"] == UIDS[3] else "")
        return found
    if path.suffix == ".jsonl":
        with path.open(newline="\n") as file:
            return [json.loads(line) for line in file]
    found = pq.read_table(path).to_pylist()
    return [{**row, "clip_score": row["clip_score"] and float(str(np.float32(row["clip_score"])))} for row in found]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_every_form_holds_every_pair(pool, clipdata, monkeypatch, form):
    monkeypatch.setattr(export, "_ROWS", 2)  # parts come in several blocks
    done = clipdata("export", "scores", "more", "--metadata", "metadata", "--out", f"all.{form}")
    assert (done.returncode, done.stdout) == (0, f"exported 7 of 7 pairs, 8 columns: all.{form}\n"), done.stderr
    found = read(pool / f"all.{form}")
    assert list(found[0]) == list(expected([0])[0])
    assert found == expected(range(7))
    told = json.loads((pool / f"all.{form}.manifest.json").read_text())
    assert (told["rows"], told["pairs"], len(told["pool_files"])) == (7, 7, 9)


def test_a_subset_keeps_the_order_of_the_table_and_names_what_it_lacks(pool, clipdata):
    uids.write_subset("s.npy", uids.from_hex([UIDS[5], UIDS[2], "f" * 32]))
    done = clipdata("export", "scores", "--subset", "s.npy", "--out", "s.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "exported 2 of 7 pairs, 2 columns: s.jsonl",
        f"1 uid of s.npy has no row in the score tables, e.g. {'f' * 32}",
        "Uids and scores only: --metadata FOLDER, which was scored, adds source, key, caption and url",
    ]
    assert read(pool / "s.jsonl") == [{"uid": UIDS[2], "clip_score": -0.5}, {"uid": UIDS[5], "clip_score": 0.1}]


@pytest.mark.parametrize(
    ("flags", "rows", "said"),
    [
        (["--top", 3, "clip_score"], [6, 3, 4], "1 pairs have no score"),
        (["--bottom", 3, "clip_score"], [2, 0, 5], "1 pairs have no score"),
        (["--top", 99, "norm_sim_inf_t_row"], [6, 5, 4, 3, 2, 1, 0], "99 were asked for: there are no more"),
        (["--top", 2, "clip_score", "--subset", "s.npy"], [0, 5], "has no row"),
    ],
)
def test_the_best_and_the_worst_come_in_their_order(pool, clipdata, monkeypatch, flags, rows, said):
    monkeypatch.setattr(export, "_ROWS", 2)
    uids.write_subset("s.npy", uids.from_hex([UIDS[5], UIDS[2], UIDS[0], "f" * 32]))
    done = clipdata("export", "scores", "more", "--metadata", "metadata", *flags, "--out", "x.jsonl")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert read(pool / "x.jsonl") == expected(rows)


def test_the_bytes_are_the_same_in_a_store(pool, clipdata):
    for out in ("x.csv", "memory://export/x.csv"):
        done = clipdata("export", "scores", "--out", out)
        assert done.returncode == 0, done.stderr
    assert storage.read_bytes("memory://export/x.csv") == (pool / "x.csv").read_bytes()


def rename_uids(pool):
    table = pq.read_table(pool / "metadata/00002.parquet")
    other = table.set_column(0, "uid", pa.array(UIDS[:4]))
    pq.write_table(other, pool / "metadata/00002.parquet")


def shorten(pool):
    pq.write_table(pq.read_table(pool / "metadata/00002.parquet").slice(1), pool / "metadata/00002.parquet")


def nest(pool):
    table = pq.read_table(pool / "metadata/00000.parquet")
    pq.write_table(table.set_column(1, "text", pa.array([["a"], [], None])), pool / "metadata/00000.parquet")


@pytest.mark.parametrize(
    ("damage", "flags", "said"),
    [
        (rename_uids, ["--metadata", "metadata"], "metadata/00002.parquet: its uids are not those of the score table"),
        (shorten, ["--metadata", "metadata"], "metadata/00002.parquet: has 3 rows, scores 4 of that name"),
        (nest, ["--metadata", "metadata"], "metadata/00000.parquet: column 'text' holds list<"),
        (lambda pool: (pool / "metadata/00001.parquet").unlink(), ["--metadata", "metadata"], "has no 00001.parquet"),
        (None, ["--metadata", "scores"], "scores: this is a score table, not metadata"),
        (None, ["--top", 3, "neg_clip_loss"], "--top: no column 'neg_clip_loss'; the score tables have clip_score"),
        (None, ["--top", 0, "clip_score"], "--top is 0, expected a number of pairs, at least 1, and a column"),
        (None, ["--top", 1, "clip_score", "--bottom", 1, "clip_score"], "--top and --bottom: give one of them"),
        (
            None,
            ["--subset", "other.npy"],
            "scores: holds none of the pairs of other.npy, so there",
        ),
        (None, ["--out", "x.xlsx"], "--out is 'x.xlsx', expected a file name that ends in .csv, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(pool, clipdata, damage, flags, said):
    uids.write_subset("other.npy", uids.from_hex(["f" * 32]))
    if damage:
        damage(pool)
    done = clipdata("export", "scores", *([] if "--out" in flags else ["--out", "x.csv"]), *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not [path for path in pool.iterdir() if path.name.startswith("x.")]


def test_exporting_imports_no_jax(pool):
    code = (
        "import sys; from clipdata_jax.cli import main\n"
        "main(['export', 'scores', '--metadata', 'metadata', '--out', 'x.csv'])\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=pool, timeout=60, check=False).returncode == 0
